// One row with everything that is known of it, and what a column means.
"use strict";

const detail = (() => {
  const { el, byId } = board;
  let turn = 0;

  function opened(dialog, ...nodes) {
    dialog.querySelector(".content").replaceChildren(...nodes);
    if (!dialog.open) dialog.showModal();
  }

  function help(column) {
    opened(
      byId("help"),
      el("h2", {}, column.metric),
      el("p", { class: "task" }, cells.taskName(column)),
      cells.about(column),
    );
  }

  // -- a row

  function heading(row) {
    const told = row.sae
      ? cells.badge(row.badge)
      : cells.tag("reference", cells.KINDS[row.kind], "shown beside the SAEs, never ranked");
    const pairs = [
      ["reference", row.ref],
      ["model", row.model],
      ["site", row.hook],
      ["architecture", row.architecture],
      ["d_in", row.d_in],
      ["d_sae", row.d_sae],
      ["L0", row.l0],
      ["MSE", row.mse],
      ["coverage", row.sae ? `${row.have} of ${row.of} main scores of this site` : ""],
      ["weights sha256", row.weights],
    ];
    return [
      el("h2", { tabindex: "-1" }, row.name, " ", told),
      cells.facts(pairs.filter(([, value]) => value !== null && value !== "")),
    ];
  }

  function controlsOf(found) {
    return found.map(({ name, value, low, high, decimals }) =>
      el(
        "span",
        { class: "control" },
        `${name} ${cells.valueText({ value, decimals })} ${cells.intervalText({ low, high, decimals })}`,
      ),
    );
  }

  function orderOf(column, cell) {
    if (column.expects === null || cell.order === "none") return [];
    const expected = column.expects.replaceAll(">", " > ");
    return [cells.mark(cell.order), ` ${expected}`, el("small", {}, column.why)];
  }

  const notes = ({ reason, reference, others }) =>
    [
      reason,
      reference ? `against ${reference}` : "",
      others.length ? `not shown, of other seeds: ${others.join(", ")}` : "",
    ].filter(Boolean);

  function line(column, cell, controls, at) {
    const attributes = column.key === at ? { class: "at" } : column.main ? { class: "main" } : {};
    return el(
      "tr",
      attributes,
      el(
        "th",
        { scope: "row" },
        cells.breakable(column.metric),
        " ",
        cells.arrow(column),
        el("small", {}, [cells.unit(column), column.setting_label].filter(Boolean).join(" · ")),
      ),
      el(
        "td",
        { class: "number" },
        cells.valueText(cell),
        el("small", {}, cells.intervalText(cell) || cell.method),
        notes(cell).map((note) => el("small", { class: "why" }, note)),
      ),
      el("td", {}, `${numbers.text(cell.n)} ${cell.unit}`, el("small", {}, cell.method)),
      el("td", {}, cell.rank === null ? "" : String(cell.rank)),
      el("td", {}, orderOf(column, cell)),
      el("td", {}, controlsOf(controls)),
    );
  }

  // One body a task, so that the columns of all stand below each other.
  function tableOf(tasks) {
    const heads = ["metric", "value", "sample", "rank", "order of controls", "controls"].map((head) =>
      el("th", { scope: "col" }, head),
    );
    const bodies = [...tasks].map(([task, lines]) =>
      el(
        "tbody",
        {},
        el("tr", { class: "group" }, el("th", { scope: "rowgroup", colspan: String(heads.length) }, task)),
        lines,
      ),
    );
    return el(
      "div",
      { class: "scroll", role: "region", tabindex: "0", "aria-label": "scores" },
      el("table", {}, el("thead", {}, el("tr", {}, heads)), bodies),
    );
  }

  async function scores(row, at) {
    const columns = board.here.order;
    await board.allCells(columns);
    const controls = await Promise.all(columns.map(board.controls));
    const tasks = new Map();
    columns.forEach((column, i) => {
      const cell = board.cell(column, row.i);
      if (cell === null) return;
      const task = cells.taskName(column);
      if (!tasks.has(task)) tasks.set(task, []);
      tasks.get(task).push(line(column, cell, controls[i](row.i), at));
    });
    return tasks.size ? [el("h3", {}, "Scores"), tableOf(tasks)] : [];
  }

  async function sources(row) {
    const found = await board.records(row);
    if (found.length === 0) return [];
    return [
      el("h3", {}, "How it was made"),
      ...found.map(({ id, task, badge, facts }) =>
        el(
          "details",
          {},
          el("summary", {}, task || "record", " ", el("code", {}, id), " ", badge ? cells.badge(badge) : ""),
          el("p", {}, "Run it again: ", el("code", {}, `saebench run --from-record RESULTS/…/${id}/record.json`)),
          cells.facts(facts),
        ),
      ),
    ];
  }

  async function show({ row: id, at }) {
    const mine = ++turn,
      dialog = byId("detail"),
      row = board.rowOf(id);
    if (!id) {
      if (dialog.open) dialog.close();
      return;
    }
    if (!row) {
      opened(dialog, el("h2", {}, "No such row"), el("p", {}, `The board holds no row ${id}.`));
      return;
    }
    const head = heading(row);
    if (!dialog.open) opened(dialog, ...head, el("p", { class: "message" }, "Scores are being read …"));
    const nodes = [head, await scores(row, at), await sources(row)].flat();
    if (mine !== turn) return;
    opened(dialog, ...nodes);
    const target = dialog.querySelector("tr.at");
    if (target) target.scrollIntoView({ block: "center" });
    else dialog.scrollTop = 0;
    dialog.querySelector("h2").focus({ preventScroll: true });
  }

  function start() {
    for (const dialog of document.querySelectorAll("dialog")) {
      dialog.querySelector(".close").addEventListener("click", () => dialog.close());
      dialog.addEventListener("click", (event) => {
        if (event.target === dialog) dialog.close();
      });
    }
    byId("detail").addEventListener("close", () => {
      if (state.current().row) state.set({ row: "", at: "" });
    });
  }

  return { help, show, start };
})();
