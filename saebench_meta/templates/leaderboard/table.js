// The table: one row an SAE, sites apart, reference rows below those they belong to and never ranked.
"use strict";

const table = (() => {
  const { el } = board;
  const ROW_HEIGHT = 64,
    NARROW_ROW = 76,
    BUFFER = 256,
    SCORE_WIDTH = 138,
    LEAST_HEIGHT = 360,
    SHARE = 0.8;
  const NARROW = 600;
  const FACTS = [
    { field: "site", head: "site", text: (row) => row.site, width: 190 },
    { field: "architecture", head: "architecture", text: (row) => row.architecture, width: 118 },
    {
      field: "width",
      head: "width",
      text: (row) => (row.d_sae ? numbers.text(row.d_sae) : ""),
      value: (row) => row.d_sae || null,
      width: 84,
      note: "d_sae",
    },
    {
      field: "l0",
      head: "L0",
      text: (row) => (row.l0 === null ? "" : numbers.text(row.l0)),
      value: (row) => row.l0,
      width: 80,
      note: "latents",
    },
    {
      field: "coverage",
      head: "coverage",
      text: (row) => (row.sae ? `${row.have} of ${row.of}` : ""),
      width: 96,
      note: "main scores",
      value: (row) => (row.of ? row.have / row.of : null),
    },
  ];
  let tabulator = null,
    ready = null,
    drawn = null;

  // Tabulator knows score columns by their number: their keys are anybody's texts.
  const fieldOf = (key) => {
    const column = board.columnOf(key);
    return column ? `c${column.i}` : key;
  };
  const columnAt = (field) => board.here.columns.find(({ i }) => `c${i}` === field);

  // -- order: sites together if wished, reference rows last, what has no value after what has
  function sorter(value) {
    return (_a, _b, rowA, rowB, _column, dir) => {
      const a = board.here.rows[rowA.getData().i],
        b = board.here.rows[rowB.getData().i];
      const sign = dir === "asc" ? 1 : -1;
      if (state.current().group === "yes" && a.place !== b.place) return sign * (a.place - b.place);
      if (a.sae !== b.sae) return sign * (a.sae ? -1 : 1);
      const left = value(a),
        right = value(b);
      const without = (v) => v === null || v === "" || Number.isNaN(v);
      if (without(left) || without(right))
        return without(left) === without(right) ? sign * (a.i - b.i) : sign * (without(left) ? 1 : -1);
      return left === right ? sign * (a.i - b.i) : left < right ? -1 : 1;
    };
  }

  // -- heads
  function turn(field, first) {
    const { sort, dir } = state.current();
    state.set({ sort: field, dir: sort === field ? (dir === "asc" ? "desc" : "asc") : first });
  }

  const sortButton = (field, first, ...content) =>
    el(
      "button",
      { type: "button", class: "sort", "data-field": field, on: { click: () => turn(field, first) } },
      ...content,
    );

  const factHead =
    ({ field, head, note }) =>
    () =>
      el("div", { class: "head" }, sortButton(field, "asc", el("b", {}, head)), el("small", {}, note ?? ""));

  const scoreHead = (column) => () =>
    el(
      "div",
      { class: "head" },
      el("small", { class: "task", title: cells.taskName(column) }, cells.taskName(column)),
      el(
        "button",
        {
          type: "button",
          class: "help",
          "aria-label": `about ${column.metric}`,
          on: { click: () => detail.help(column) },
        },
        "?",
      ),
      sortButton(
        column.key,
        column.better === "higher" ? "desc" : "asc",
        cells.arrow(column),
        " ",
        el("b", { title: column.metric }, cells.breakable(column.metric)),
      ),
      [cells.unit(column), column.setting_label].filter(Boolean).map((text) => el("small", { title: text }, text)),
      el(
        "span",
        { class: "foot" },
        cells.past(column),
        column.order_failed
          ? el(
              "span",
              { class: "mark fails", title: `order of controls ${cells.orderTold(column)}` },
              `✗ ${column.order_failed}/${column.order_tested}`,
            )
          : [],
      ),
    );

  // -- columns
  const formatter = (make) => (cell) => make(board.here.rows[cell.getRow().getData().i]);

  function nameCell(row) {
    const chosen = state.current().pick.includes(row.id);
    const box = row.sae
      ? [
          el("input", {
            type: "checkbox",
            "aria-label": `compare ${row.name}`,
            checked: chosen ? "" : null,
            on: {
              change: (event) => compare.pick(row.id, event.target.checked),
              click: (event) => event.stopPropagation(),
            },
          }),
        ]
      : [];
    const open = el("button", { type: "button", class: "open", title: row.name }, row.name);
    open.addEventListener("click", (event) => {
      event.stopPropagation();
      state.set({ row: row.id, at: "" });
    });
    const told = row.sae
      ? cells.badge(row.badge)
      : cells.tag("reference", cells.KINDS[row.kind], "a reference: shown beside the SAEs, never ranked");
    return el("div", { class: "name" }, box, el("span", { class: "names" }, open, el("small", {}, told)));
  }

  function columnsOf(columns) {
    const narrow = innerWidth < NARROW;
    const hasL0 = columns.some((column) => column.task === "core" && column.metric === "l0");
    const facts = FACTS.filter(({ field }) =>
      field === "site" ? state.current().group === "no" : field !== "l0" || !hasL0,
    );
    const ofFacts = facts.map((fact) => ({
      title: fact.head,
      field: fact.field,
      width: fact.width,
      sorter: sorter(fact.value ?? fact.text),
      titleFormatter: factHead(fact),
      formatter: formatter((row) => el("span", { class: "fact", title: fact.text(row) }, fact.text(row))),
      cssClass: fact.value ? "number" : "",
    }));
    const ofScores = columns.map((column) => ({
      title: `column ${column.i}`,
      field: fieldOf(column.key),
      width: SCORE_WIDTH,
      sorter: sorter((row) => column.cells.value[row.i]),
      titleFormatter: scoreHead(column),
      formatter: formatter((row) => cells.score(column, row)),
      cssClass: "scored",
    }));
    return [
      {
        title: "SAE",
        field: "name",
        frozen: true,
        width: narrow ? 150 : 236,
        sorter: sorter((row) => row.natural),
        titleFormatter: factHead({ field: "name", head: "SAE", note: "select to compare" }),
        formatter: formatter(nameCell),
        cssClass: "first",
      },
      ...(narrow ? [...ofScores, ...ofFacts] : [...ofFacts, ...ofScores]),
    ].map((definition) => ({ ...definition, headerSort: false, resizable: false, vertAlign: "middle" }));
  }

  function made(columns, kept) {
    const places = new Map(board.here.sites.map(({ site }, i) => [site, i]));
    board.here.rows.forEach((row) => {
      row.place = places.get(row.site);
    });
    const definitions = columnsOf(columns);
    const names = definitions.map(({ field }) => field);
    tabulator = new Tabulator(board.byId("table"), {
      columns: definitions,
      data: board.here.rows.map(({ i, place }) => ({ id: i, i, place })),
      groupBy: state.current().group === "yes" ? "place" : false,
      groupHeader: (place, count) => groupHead(board.here.sites[place], count),
      groupToggleElement: false,
      initialFilter: kept.length < board.here.rows.length ? among(kept) : [],
      initialSort: sorted(state.current(), names),
      layout: "fitData",
      maxHeight: Math.max(LEAST_HEIGHT, Math.round(innerHeight * SHARE)),
      nestedFieldSeparator: false,
      placeholder: () => el("p", {}, "Nothing on the board fits these filters."),
      rowFormatter: dress,
      renderVerticalBuffer: BUFFER,
      rowHeight: innerWidth < NARROW ? NARROW_ROW : ROW_HEIGHT,
    });
    tabulator.on("cellClick", (_event, cell) => {
      const at = columnAt(cell.getColumn().getField())?.key ?? "";
      state.set({ row: board.here.rows[cell.getRow().getData().i].id, at });
    });
    return new Promise((resolve) => {
      tabulator.on("tableBuilt", resolve);
    });
  }

  const groupHead = ({ model, hook }, count) =>
    el("span", { class: "site" }, el("b", {}, model), ` ${hook} `, el("small", {}, numbers.count(count, "row")));

  function dress(row) {
    const found = board.here.rows[row.getData().i];
    row.getElement().classList.toggle("reference", !found.sae);
    row.getElement().classList.toggle("picked", state.current().pick.includes(found.id));
  }

  // -- what changed is drawn anew
  async function show(now, kept) {
    const columns = state.columns();
    await board.allCells(columns);
    const wanted = {
      columns: JSON.stringify([columns.map(({ i }) => i), now.group, innerWidth < NARROW]),
      kept: kept.map(({ i }) => i).join(" "),
      sort: `${now.sort} ${now.dir}`,
      group: now.group,
      pick: now.pick.join(" "),
    };
    if (tabulator === null) {
      drawn = wanted;
      ready = made(columns, kept).then(() => marked(now));
    }
    await ready;
    if (now !== state.current()) return;
    const before = drawn;
    drawn = wanted;
    if (before.group !== wanted.group) tabulator.setGroupBy(now.group === "yes" ? "place" : false);
    if (before.columns !== wanted.columns) tabulator.setColumns(columnsOf(columns));
    if (before.kept !== wanted.kept) filter(kept);
    if (before.sort !== wanted.sort || before.columns !== wanted.columns) order(now);
    if (before.pick !== wanted.pick) redraw();
  }

  function among(kept) {
    const found = new Set(kept.map(({ i }) => i));
    return (data) => found.has(data.i);
  }

  function filter(kept) {
    if (kept.length === board.here.rows.length) tabulator.clearFilter();
    else tabulator.setFilter(among(kept));
  }

  const fields = () => tabulator.getColumns().map((column) => column.getField());

  // Nothing where the column that was asked for is not shown.
  const sorted = ({ sort, dir }, names) => (names.includes(fieldOf(sort)) ? [{ column: fieldOf(sort), dir }] : []);

  function order(now) {
    tabulator.setSort(sorted(now, fields()));
    marked(now);
  }

  function marked({ sort, dir }) {
    for (const column of tabulator.getColumns()) {
      column.getElement().setAttribute("aria-sort", column.getField() === fieldOf(sort) ? `${dir}ending` : "none");
    }
  }

  // Rows as they are drawn, but for the heads of sites; a tick that did not count is taken back.
  const redraw = () => tabulator?.getRows("visible").forEach((row) => row.reformat?.());

  // The rows as they stand, for downloads.
  const rows = () =>
    tabulator === null ? null : tabulator.getRows("active").map((row) => board.here.rows[row.getData().i]);

  return { NARROW, show, rows, redraw };
})();
