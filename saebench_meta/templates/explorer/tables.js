// What is known of latents and meta-latents, and the tables that list them.
"use strict";

explorer.tables = (() => {
  const { el, load, number, integer, visible } = explorer;
  const ROWS = 50, MORE = 500;
  const NUMBER = "number";

  function tokensOf(index, latent) {
    const found = index.activity;
    if (!found) return [];
    const places = found.tokens.slice(latent * found.top, (latent + 1) * found.top);
    return places.filter((place) => place >= 0).map((place) => found.vocabulary[place]);
  }

  const token = (text) => el("span", { class: "token" }, visible(text));
  const tokens = (index, latent) => tokensOf(index, latent).map(token);
  const linkLatent = (latent) => el("a", { href: `#latent/${latent}` }, `latent ${latent}`);
  const linkMeta = (meta) => el("a", { href: `#meta/${meta}` }, `meta-latent ${meta}`);

  // latent -> its explanation, read once
  let texts = null;
  async function explanations(index) {
    if (!index.explained) return new Map();
    if (texts === null) {
      const found = await load("explanations");
      texts = new Map(found.latents.map((latent, i) => [latent, found.texts[i]]));
    }
    return texts;
  }

  // The pairs by latent as they are written, and by meta-latent, strongest first.
  let pairs = null;
  async function decomposition(index) {
    if (!index.metas) return null;
    if (pairs === null) {
      const found = await load("decomposition");
      const starts = [0];
      for (const n of found.counts) starts.push(starts[starts.length - 1] + n);
      pairs = { ...found, starts, byMeta: turned(found, starts, index.metas.latents.length) };
    }
    return pairs;
  }

  function turned(found, starts, metas) {
    const lists = Array.from({ length: metas }, () => []);
    for (let latent = 0; latent + 1 < starts.length; latent++) {
      for (let i = starts[latent]; i < starts[latent + 1]; i++) lists[found.metas[i]].push([latent, found.activations[i]]);
    }
    for (const list of lists) list.sort((a, b) => b[1] - a[1]);
    return lists;
  }

  // [meta-latent, activation] of a latent, strongest first
  function metasOf(found, latent) {
    const range = [found.starts[latent], found.starts[latent + 1]];
    const activations = found.activations.slice(...range);
    return found.metas.slice(...range).map((meta, i) => [meta, activations[i]]);
  }

  function bar(value, largest) {
    const drawn = el("span", { class: "bar", "aria-hidden": "true" });
    drawn.style.width = `${Math.max(2, (60 * value) / largest)}px`;
    return drawn;
  }

  // Heads (a text, or a text and `NUMBER`), and rows of cells, made when they are shown; the first cell of a row is its
  // head. More rows come on demand.
  function table(label, heads, rows) {
    const body = el("tbody");
    const more = el("button", { type: "button" });
    const styles = heads.map((head) => (Array.isArray(head) && head[1] === NUMBER ? { class: "number" } : {}));
    const cell = (content, i) => el(i ? "td" : "th", { ...(i ? {} : { scope: "row" }), ...styles[i] }, content);
    function grow(n) {
      const start = body.rows.length;
      body.append(...rows.slice(start, start + n).map((row) => el("tr", {}, row().map(cell))));
      const left = rows.length - body.rows.length;
      more.hidden = left === 0;
      more.textContent = `Show ${integer(Math.min(left, MORE))} more of ${integer(left)}`;
    }
    more.addEventListener("click", () => grow(MORE));
    grow(ROWS);
    const head = heads.map((text, i) => el("th", { scope: "col", ...styles[i] }, Array.isArray(text) ? text[0] : text));
    const whole = el("table", {}, el("thead", {}, el("tr", {}, head)), body);
    return [el("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": label }, whole), more];
  }

  // Latents with what is known of each; `extra` puts further cells after the first: [head, latent -> cell].
  function latents(index, label, found, known, extra = []) {
    const heads = ["latent", ...extra.map(([head]) => head)];
    const cells = extra.map(([, cell]) => cell);
    const column = (head, cell) => (heads.push(head), cells.push(cell));
    if (index.activity) column("most active on", (latent) => tokens(index, latent));
    if (index.explained) column("explanation", (latent) => explained(known.get(latent) ?? ""));
    if (index.activity) column(["of tokens", NUMBER], (latent) => share(index, latent));
    return table(label, heads, found.map((latent) => () => [linkLatent(latent), ...cells.map((cell) => cell(latent))]));
  }

  const explained = (text) => el("span", { class: "explanation", title: text }, text);
  const share = (index, latent) => `${number((100 * index.activity.counts[latent]) / index.activity.tokens_seen)} %`;

  function metas(index, label, found, extra = []) {
    const heads = ["meta-latent", ...extra.map(([head]) => head), ["latents", NUMBER], "most active on"];
    const row = (meta) => [
      linkMeta(meta),
      ...extra.map(([, cell]) => cell(meta)),
      integer(index.metas.latents[meta]),
      index.metas.top[meta] < 0 ? "" : [linkLatent(index.metas.top[meta]), " ", ...tokens(index, index.metas.top[meta])],
    ];
    return table(label, heads, found.map((meta) => () => row(meta)));
  }

  return { NUMBER, tokensOf, token, tokens, explanations, decomposition, metasOf, bar, table, latents, metas, share };
})();
