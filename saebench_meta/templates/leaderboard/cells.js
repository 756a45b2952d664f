// What a cell and a column's head say, in every view alike.
"use strict";

const cells = (() => {
  const { el } = board;
  const DIRECTIONS = {
    higher: ["↑", "higher is better"],
    lower: ["↓", "lower is better"],
    neither: ["·", "neither direction is better"],
  };
  const ORDERS = {
    holds: ["✓", "the controls stand in the expected order"],
    fails: ["✗", "the controls do not stand in the expected order: do not trust this number"],
    untested: ["?", "whether the controls stand in the expected order is within the noise"],
  };
  const KINDS = { control: "control", chance: "chance" };
  const NONE = "—";

  // A name may break after its underscores.
  const breakable = (text) =>
    text
      .split(/(?<=_)/)
      .flatMap((part) => [part, el("wbr")])
      .slice(0, -1);

  const sr = (text) => el("span", { class: "sr" }, text);
  const tag = (kind, text, title = null) => el("span", { class: `tag ${kind}`, title }, text);

  // A sign for those who see it, words for everybody.
  const mark = (order) =>
    order === "none"
      ? []
      : [
          el("span", { class: `mark ${order}`, title: ORDERS[order][1], "aria-hidden": "true" }, ORDERS[order][0]),
          sr(ORDERS[order][1]),
        ];

  const badge = (text) =>
    tag(
      text === "reproduced" ? "reproduced" : "reported",
      text,
      text === "reproduced"
        ? "a maintainer's rerun agreed with these numbers"
        : "run by whoever submitted it; nobody has run it again",
    );

  const rankText = (rank) =>
    rank === 1
      ? "rank 1: no SAE of this site is better beyond the noise"
      : `rank ${rank}: ${numbers.count(rank - 1, "SAE")} of this site better beyond the noise`;

  const rank = (number) =>
    number === null
      ? []
      : [
          el(
            "span",
            { class: number === 1 ? "rank first" : "rank", title: rankText(number), "aria-hidden": "true" },
            `${number}`,
          ),
          sr(rankText(number)),
        ];

  const intervalText = (cell) => (cell.low === null ? "" : numbers.interval(cell.low, cell.high, cell.decimals));
  const valueText = (cell) => (cell.value === null ? NONE : numbers.text(cell.value, cell.decimals));

  function summary(column, cell) {
    if (cell.value === null) return `${column.metric}: no value. ${cell.reason}`;
    const lines = [
      `${column.metric} ${valueText(cell)} ${intervalText(cell)}`,
      `${numbers.count(cell.n, "")}${cell.unit}, ${cell.method}${cell.reason ? `; ${cell.reason}` : ""}`,
      ...(cell.reference ? [`against ${cell.reference}`] : []),
      ...(cell.rank === null ? [] : [rankText(cell.rank)]),
      ...(cell.order === "none" ? [] : [`${ORDERS[cell.order][0]} ${ORDERS[cell.order][1]}`]),
    ];
    return lines.join("\n");
  }

  // Value and interval on a line from the worst to the best of the site.
  function bar(column, row, cell) {
    const [least, most] = board.span(column, row.site);
    if (!row.sae || !(most > least)) return [];
    const flipped = column.better === "lower";
    const place = (value) => {
      const share = (100 * (value - least)) / (most - least);
      return Math.min(100, Math.max(0, flipped ? 100 - share : share));
    };
    const drawn = el("span", { class: column.better === "neither" ? "bar plain" : "bar", "aria-hidden": "true" });
    if (cell.low !== null) {
      const [from, to] = [place(cell.low), place(cell.high)].sort((a, b) => a - b);
      const whisker = el("span", { class: "whisker" });
      whisker.style.left = `${from}%`;
      whisker.style.width = `${Math.max(to - from, 1)}%`;
      drawn.append(whisker);
    }
    const dot = el("span", { class: "dot" });
    dot.style.left = `${place(cell.value)}%`;
    drawn.append(dot);
    return [drawn];
  }

  // One number as the table shows it; empty where nothing was measured.
  function score(column, row) {
    const cell = board.cell(column, row.i);
    if (cell === null) return "";
    const title = summary(column, cell);
    if (cell.value === null) {
      return el(
        "div",
        { class: "score", title },
        el("b", { "aria-hidden": "true" }, NONE),
        sr(`no value: ${cell.reason}`),
      );
    }
    const again = cell.reproduced && row.badge !== "reproduced" ? [tag("reproduced", "r", "reproduced")] : [];
    return el(
      "div",
      { class: cell.order === "fails" ? "score fails" : "score", title },
      el(
        "span",
        { class: "top" },
        cell.order === "holds" ? [] : mark(cell.order),
        el("b", {}, valueText(cell)),
        again,
        rank(cell.rank),
      ),
      el(
        "span",
        { class: "interval" },
        intervalText(cell) || cell.method,
        cell.reference ? ` vs ${cell.reference}` : "",
      ),
      bar(column, row, cell),
    );
  }

  // -- heads

  const arrow = (column) => {
    const [sign, words] = DIRECTIONS[column.better];
    return [el("span", { class: "arrow", title: words, "aria-hidden": "true" }, sign), sr(words)];
  };

  const unit = (column) => (column.unit === "1" ? "" : column.unit);
  const taskName = (column) => `${column.task}@${column.version}`;
  const past = (column) =>
    column.current ? [] : [tag("past", "old version", "a newer version of this task is on the board")];

  function orderTold({ order_failed: failed, order_tested: tested }) {
    if (!tested) return "";
    if (!failed) return `holds on all ${numbers.count(tested, "SAE")} tested`;
    return `fails on ${failed} of ${numbers.count(tested, "SAE")} tested`;
  }

  const flat = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));

  // Everything there is to know of a column, as terms and descriptions.
  function about(column) {
    const pairs = [
      ["what", column.help],
      ["unit", unit(column)],
      ["direction", DIRECTIONS[column.better][1]],
      ["expected order of controls", column.expects?.replaceAll(">", " > ") ?? ""],
      ["why", column.why],
      ["seen", orderTold(column)],
      ["setting", column.setting_label],
      ...column.setting.map(([name, value]) => [name, value]),
      ["task version", column.current ? "" : "a newer version of this task is on the board"],
      ["on the board", `${numbers.count(column.filled, "SAE")} with a value`],
    ];
    return facts(pairs.filter(([, text]) => text !== ""));
  }

  // Plain data as a list of terms; what is nested in it as a list inside.
  function facts(pairs) {
    return el(
      "dl",
      {},
      pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, described(value))]),
    );
  }

  function described(value) {
    if (value !== null && typeof value === "object" && Array.isArray(value.of)) {
      return value.of.length ? facts(value.of) : NONE;
    }
    if (Array.isArray(value)) {
      return value.some((v) => v !== null && typeof v === "object")
        ? el(
            "ul",
            {},
            value.map((v) => el("li", {}, described(v))),
          )
        : value.map(flat).join(", ") || NONE;
    }
    return value === null ? NONE : typeof value === "number" ? numbers.text(value) : flat(value);
  }

  return {
    DIRECTIONS,
    ORDERS,
    KINDS,
    NONE,
    breakable,
    sr,
    tag,
    mark,
    badge,
    rank,
    rankText,
    intervalText,
    valueText,
    score,
    arrow,
    unit,
    taskName,
    past,
    orderTold,
    about,
    facts,
  };
})();
