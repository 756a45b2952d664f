// How often a latent is how active: bars over equal parts of the range from 0 to its largest activation.
"use strict";

explorer.histogram = (() => {
  const { svg, number, integer, count } = explorer;
  const [TOP, HEIGHT, BELOW] = [18, 110, 22];

  function histogram(counts, largest, width) {
    const wide = Math.min(width, 560);
    const step = wide / counts.length;
    const most = Math.max(...counts);
    const floor = TOP + HEIGHT;
    const bars = counts.map((n, i) => {
      const height = (HEIGHT * n) / most;
      const ends = [i, i + 1].map((end) => number((largest * end) / counts.length));
      const title = svg("title", {}, `${ends.join(" to ")}: ${count(n, "token")}`);
      return svg("rect", { x: i * step + 0.5, y: floor - height, width: step - 1, height, class: "node-meta" }, title);
    });
    const text = (x, y, anchor, said) => svg("text", { x, y, "text-anchor": anchor }, said);
    const total = counts.reduce((sum, n) => sum + n, 0);
    const label = `Histogram of its activations on ${count(total, "token")}: from 0 to ${number(largest)}, at most ${count(most, "token")} in one of ${counts.length} equal parts.`;
    return svg(
      "svg",
      { viewBox: `0 0 ${width} ${floor + BELOW}`, height: floor + BELOW, role: "img", "aria-label": label },
      bars, svg("line", { x1: 0, y1: floor, x2: wide, y2: floor }), text(0, 12, "start", `${integer(most)} tokens`),
      text(0, floor + 16, "start", "0"), text(wide, floor + 16, "end", number(largest)),
    );
  }

  return histogram;
})();
