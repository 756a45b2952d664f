// Around one latent: its meta-latents, and the latents that share them (paper, figure 1). Thicker lines, larger activation.
"use strict";

explorer.graph = (() => {
  const { svg, visible } = explorer;
  const { metasOf, tokensOf } = explorer.tables;
  const TURN = 2 * Math.PI;

  // Cosine of two latents' activations over meta-latents, the nearest first.
  function nearest(found, latent) {
    const mine = metasOf(found, latent);
    const dot = new Map();
    for (const [meta, a] of mine) {
      for (const [other, b] of found.byMeta[meta]) if (other !== latent) dot.set(other, (dot.get(other) ?? 0) + a * b);
    }
    const norm = (pairs) => Math.hypot(...pairs.map(([, a]) => a));
    const own = norm(mine);
    return [...dot].map(([other, sum]) => [other, sum / (own * norm(metasOf(found, other)))]).sort((a, b) => b[1] - a[1]);
  }

  function shared(found, latent, other) {
    const mine = new Set(metasOf(found, latent).map(([meta]) => meta));
    return metasOf(found, other).filter(([meta]) => mine.has(meta));
  }

  // Latents in the order in which their meta-latents stand around the centre, so that few lines cross.
  function around(found, latent, others, angleOf) {
    const mean = (other) => {
      let [x, y] = [0, 0];
      for (const [meta, a] of shared(found, latent, other)) {
        if (!angleOf.has(meta)) continue;
        x += a * Math.cos(angleOf.get(meta));
        y += a * Math.sin(angleOf.get(meta));
      }
      return (Math.atan2(y, x) + TURN) % TURN;
    };
    return others.map((other) => [other, mean(other)]).sort((a, b) => a[1] - b[1]);
  }

  function draw(index, found, latent, others, width) {
    const narrow = width < 560;
    const metas = metasOf(found, latent).slice(0, narrow ? 6 : 10);
    const chosen = others.slice(0, narrow ? 10 : 24).map(([other]) => other);
    const height = narrow ? 400 : 520;
    const [cx, cy, ry] = [width / 2, height / 2, height / 2 - 34];
    const rx = Math.max(60, Math.min(width / 2 - (narrow ? 96 : 150), 1.25 * ry));
    const at = (angle, part) => [cx + part * rx * Math.cos(angle), cy + part * ry * Math.sin(angle)];
    const angleOf = new Map(metas.map(([meta], i) => [meta, (TURN * (i + 0.5)) / metas.length]));
    const ring = around(found, latent, chosen, angleOf);
    const drift = ring.length ? ring.reduce((sum, [, angle], i) => sum + angle - (TURN * i) / ring.length, 0) / ring.length : 0;
    const edges = metas.map(([meta, a]) => [[cx, cy], at(angleOf.get(meta), 0.5), a]);
    const nodes = [];
    ring.forEach(([other], i) => {
      const angle = (TURN * i) / ring.length + drift;
      for (const [meta, a] of shared(found, latent, other)) {
        if (angleOf.has(meta)) edges.push([at(angleOf.get(meta), 0.5), at(angle, 1), a]);
      }
      nodes.push(latentNode(index, other, at(angle, 1), angle, narrow));
    });
    for (const [meta] of metas) nodes.push(metaNode(meta, at(angleOf.get(meta), 0.5)));
    const centre = svg("g", {}, svg("circle", { cx, cy, r: 9, class: "node-self" }), name(latent, [cx, cy + 24], "middle"));
    return svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, height, role: "group", "aria-label": `Latent ${latent}, its meta-latents and the latents that share them` },
      lines(edges), nodes, centre,
    );
  }

  function lines(edges) {
    const largest = Math.max(...edges.map(([, , a]) => a));
    return edges.map(([[x1, y1], [x2, y2], a]) => svg("line", { x1, y1, x2, y2, "stroke-width": 0.6 + (5 * a) / largest }));
  }

  const name = (text, [x, y], anchor) => svg("text", { x, y, "text-anchor": anchor }, String(text));

  function latentNode(index, latent, [x, y], angle, narrow) {
    const [first] = tokensOf(index, latent);
    const label = first === undefined ? String(latent) : `${latent} ${cut(visible(first).trim(), narrow ? 8 : 14)}`;
    const side = Math.cos(angle);
    const anchor = Math.abs(side) < 0.1 ? "middle" : side > 0 ? "start" : "end";
    const shift = anchor === "middle" ? [0, Math.sin(angle) > 0 ? 22 : -12] : [side > 0 ? 11 : -11, 4];
    return svg(
      "a",
      { href: `#latent/${latent}`, "aria-label": `latent ${latent}${first === undefined ? "" : `, ${first.trim()}`}` },
      svg("circle", { cx: x, cy: y, r: 6, class: "node-latent" }),
      name(label, [x + shift[0], y + shift[1]], anchor),
    );
  }

  function metaNode(meta, [x, y]) {
    return svg(
      "a",
      { href: `#meta/${meta}`, "aria-label": `meta-latent ${meta}` },
      svg("rect", { x: x - 6, y: y - 6, width: 12, height: 12, class: "node-meta" }),
      name(meta, [x, y - 10], "middle"),
    );
  }

  const cut = (text, n) => (text.length > n ? `${[...text].slice(0, n - 1).join("")}…` : text);

  return { nearest, shared, draw };
})();
