// What is shown, as a file: rows and columns as they stand.
"use strict";

const download = (() => {
  const FACTS = [
    "id",
    "name",
    "kind",
    "ref",
    "model",
    "hook",
    "architecture",
    "d_in",
    "d_sae",
    "l0",
    "mse",
    "weights",
    "badge",
  ];
  const PARTS = ["value", "low", "high", "rank", "n", "unit", "method", "order", "reason"];

  function rows(now) {
    if (now.view === "compare") return state.picked();
    return (now.view === "table" && table.rows()) || filters.kept(now);
  }

  async function contents() {
    const now = state.current(),
      columns = state.columns();
    await board.allCells(columns);
    return { columns, rows: rows(now) };
  }

  // Neither quotes nor line breaks break it, and nothing in it is a formula to a spreadsheet.
  function field(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  function csv({ columns, rows: shown }) {
    const heads = [
      ...FACTS,
      ...columns.flatMap(({ key }) => PARTS.map((part) => (part === "value" ? key : `${key} ${part}`))),
    ];
    const lines = shown.map((row) => {
      const found = columns.map((column) => board.cell(column, row.i) ?? {});
      return [...FACTS.map((name) => row[name]), ...found.flatMap((cell) => PARTS.map((part) => cell[part]))];
    });
    return [heads, ...lines].map((line) => line.map(field).join(",")).join("\r\n");
  }

  function json({ columns, rows: shown }) {
    const column = ({ key, task, version, metric, unit, better, help, setting_label }) => ({
      key,
      task,
      version,
      metric,
      unit,
      better,
      help,
      setting: setting_label,
    });
    const cell = (row) => (each) => {
      const found = board.cell(each, row.i);
      return found && Object.fromEntries(PARTS.map((part) => [part, found[part]]));
    };
    return JSON.stringify(
      {
        columns: columns.map(column),
        rows: shown.map((row) => ({
          ...Object.fromEntries(FACTS.map((name) => [name, row[name]])),
          cells: columns.map(cell(row)),
        })),
      },
      null,
      1,
    );
  }

  function save(name, type, text) {
    const address = URL.createObjectURL(new Blob([text], { type }));
    const link = board.el("a", { href: address, download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  function start() {
    board
      .byId("csv")
      .addEventListener("click", async () => save("leaderboard.csv", "text/csv;charset=utf-8", csv(await contents())));
    board
      .byId("json")
      .addEventListener("click", async () => save("leaderboard.json", "application/json", json(await contents())));
  }

  return { start, field, csv, contents };
})();
