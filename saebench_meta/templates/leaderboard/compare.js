// Two to six SAEs side by side, with what was tested between them.
"use strict";

const compare = (() => {
  const { el, byId } = board;
  const FEWEST = 2,
    MOST = 6;
  let turn = 0;

  function pick(id, wanted) {
    const { pick: picked } = state.current();
    if (wanted && picked.length >= MOST) {
      site.say(`${MOST} SAEs are chosen already: take one out first.`);
      table.redraw();
      return;
    }
    state.set({ pick: wanted ? [...picked, id] : picked.filter((each) => each !== id) });
  }

  // -- what is chosen, at the foot of every view

  function tray(rows) {
    const names = rows.map((row) =>
      el(
        "li",
        {},
        row.name,
        " ",
        el(
          "button",
          { type: "button", "aria-label": `take out ${row.name}`, on: { click: () => pick(row.id, false) } },
          "×",
        ),
      ),
    );
    byId("tray").hidden = rows.length === 0;
    byId("tray-names").replaceChildren(...names);
    byId("tray-compare").disabled = rows.length < FEWEST;
    byId("tray-compare").textContent = rows.length < FEWEST ? "Choose one more to compare" : `Compare ${rows.length}`;
    byId("picked").textContent = rows.length ? ` (${rows.length})` : "";
  }

  // -- the differences

  const VERDICTS = {
    better: ["▲", "better"],
    worse: ["▼", "worse"],
    differs: ["≠", "differs"],
    tie: ["=", "tie"],
    untested: ["∅", "untested"],
  };

  // Of a row against the base: the verdict and the interval of row − base.
  function against(found, row, base) {
    const ahead = found.get(`${row.i} ${base.i}`),
      behind = found.get(`${base.i} ${row.i}`);
    const tested = ahead ?? behind;
    if (!tested)
      return {
        verdict: "untested",
        reason: row.site === base.site ? "no test of this pair is on the board" : "not of one model and site",
        low: null,
      };
    const sided = { a: ahead ? "better" : "worse", b: ahead ? "worse" : "better" };
    const turned = ahead || tested.low === null ? tested : { ...tested, low: -tested.high, high: -tested.low };
    return { ...turned, verdict: sided[tested.verdict] ?? tested.verdict };
  }

  function verdict(found) {
    const [sign, word] = VERDICTS[found.verdict];
    const told =
      found.low === null ? found.reason : `difference ${numbers.interval(found.low, found.high, found.decimals)}`;
    return el(
      "span",
      { class: `verdict ${found.verdict}` },
      el("span", { "aria-hidden": "true" }, sign),
      ` ${word}`,
      el("small", {}, told ? `: ${told}` : ""),
    );
  }

  function cellOf(column, row, base, found) {
    const cell = board.cell(column, row.i);
    const own = cell === null ? [] : [cells.score(column, row)];
    const tested =
      row === base || cell === null || board.cell(column, base.i) === null ? [] : [verdict(against(found, row, base))];
    return el("td", { class: row === base ? "base" : null }, own, tested);
  }

  function line(column, rows, base, found) {
    return el(
      "tr",
      {},
      el(
        "th",
        { scope: "row" },
        el("small", {}, cells.taskName(column)),
        cells.breakable(column.metric),
        " ",
        cells.arrow(column),
        el("small", {}, [cells.unit(column), column.setting_label].filter(Boolean).join(" · ")),
      ),
      rows.map((row) => cellOf(column, row, base, found)),
    );
  }

  function head(row, base) {
    const facts = [
      `width ${numbers.text(row.d_sae)}`,
      row.l0 === null ? "" : `L0 ${numbers.text(row.l0)}`,
      row.architecture,
    ].filter(Boolean);
    return el(
      "th",
      { scope: "col", class: row === base ? "base" : null },
      el(
        "button",
        { type: "button", class: "open", on: { click: () => state.set({ row: row.id, at: "" }) } },
        row.name,
      ),
      el("small", {}, facts.join(" · ")),
      el("small", {}, row.site),
      row === base ? cells.tag("reported", "compared against") : [],
    );
  }

  // Who is better, worse, tied or untested how often: counts of the scores shown, no mean over them.
  function tally(row, base, columns, found) {
    if (row === base) return el("td", { class: "base" });
    const counts = { better: 0, worse: 0, differs: 0, tie: 0, untested: 0 };
    columns.forEach((column, i) => {
      if (board.cell(column, row.i) !== null && board.cell(column, base.i) !== null)
        counts[against(found[i], row, base).verdict] += 1;
    });
    return el(
      "td",
      {},
      Object.entries(counts)
        .filter(([, n]) => n)
        .map(([name, n]) =>
          el(
            "span",
            { class: `verdict ${name}` },
            el("span", { "aria-hidden": "true" }, VERDICTS[name][0]),
            ` ${n} ${VERDICTS[name][1]}`,
          ),
        ),
    );
  }

  function chooseBase(rows, base) {
    const options = rows.map((row) => el("option", { value: row.id }, row.name));
    const select = el(
      "select",
      { id: "base", on: { change: (event) => state.set({ base: event.target.value }) } },
      options,
    );
    select.value = base.id;
    return el("p", {}, el("label", { for: "base" }, "Compared against "), select);
  }

  async function show(now) {
    const mine = ++turn,
      rows = state.picked().slice(0, MOST),
      target = byId("compare-body");
    if (rows.length < FEWEST) {
      target.replaceChildren(
        el("p", { class: "message" }, `Choose ${FEWEST} to ${MOST} SAEs in the table; ${rows.length} chosen.`),
      );
      return;
    }
    const base = rows.find((row) => row.id === now.base) ?? rows[0];
    const columns = state.columns();
    await board.allCells(columns);
    const found = await Promise.all(columns.map(board.differences));
    if (mine !== turn) return;
    const shown = columns
      .map((column, i) => [column, found[i]])
      .filter(([column]) => rows.some((row) => board.cell(column, row.i)));
    const body = el(
      "tbody",
      {},
      el(
        "tr",
        { class: "tally" },
        el("th", { scope: "row" }, "against the base"),
        rows.map((row) => tally(row, base, columns, found)),
      ),
      shown.map(([column, tested]) => line(column, rows, base, tested)),
    );
    target.replaceChildren(
      chooseBase(rows, base),
      el(
        "p",
        { class: "note" },
        "Differences are over the documents both SAEs were measured on, with intervals corrected for the number of " +
          "pairs tested. Overlapping intervals are no test.",
      ),
      el(
        "div",
        { class: "scroll", role: "region", tabindex: "0", "aria-label": "comparison" },
        el(
          "table",
          {},
          el("caption", {}, `${numbers.count(rows.length, "SAE")}, ${numbers.count(shown.length, "score")}`),
          el(
            "thead",
            {},
            el(
              "tr",
              {},
              el("th", { scope: "col" }, "score"),
              rows.map((row) => head(row, base)),
            ),
          ),
          body,
        ),
      ),
    );
  }

  function start() {
    byId("tray-compare").addEventListener("click", () => state.set({ view: "compare" }));
    byId("tray-clear").addEventListener("click", () => state.set({ pick: [], base: "" }));
  }

  return { pick, tray, show, start, MOST };
})();
