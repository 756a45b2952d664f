// Scores against L0 or width at one site, with the front of what nothing else beats in both.
"use strict";

const plot = (() => {
  const { el, svg, byId } = board;
  const AXES = {
    l0: { value: (row) => row.l0, title: "L0, active latents per token", name: "L0", metric: "l0" },
    width: { value: (row) => row.d_sae, title: "width d_sae, latents", name: "width", metric: null },
  };
  const HEIGHT = 460,
    LOWEST = 300,
    WIDEST = 1100,
    LONGEST_TITLE = 60;
  let turn = 0;

  // MSE, unless the reader says; whatever has most values where there is none.
  function ofState(now) {
    const { columns } = board.here;
    const chosen = board.columnOf(now.y);
    const usual = columns.find((column) => column.task === "core" && column.metric === "mse" && column.current);
    return (
      chosen ?? usual ?? columns.reduce((best, column) => (best && best.filled >= column.filled ? best : column), null)
    );
  }

  // Numbers of different sites do not stand on one axis: the site with most of the rows shown.
  function siteOf(rows) {
    const counts = new Map();
    for (const row of rows) if (row.sae) counts.set(row.site, (counts.get(row.site) ?? 0) + 1);
    return {
      site: [...counts].reduce((best, pair) => (pair[1] > best[1] ? pair : best), [null, 0])[0],
      sites: counts.size,
    };
  }

  function pointOf(row, column, axis, across, groups, picked) {
    const cell = board.cell(column, row.i),
      x = axis.value(row);
    if (cell === null || cell.value === null || x === null) return null;
    const xCell = across && board.cell(across, row.i);
    return {
      row,
      x,
      y: cell.value,
      yLow: cell.low,
      yHigh: cell.high,
      group: groups.indexOf(row.architecture),
      reference: !row.sae,
      front: false,
      xLow: xCell && xCell.low !== null ? xCell.low : null,
      xHigh: xCell && xCell.low !== null ? xCell.high : null,
      picked: picked.has(row.id),
      told: [
        row.name,
        `${column.metric} ${cells.valueText(cell)} ${cells.intervalText(cell)}`,
        `L0 ${row.l0 === null ? cells.NONE : numbers.text(row.l0)}`,
        `width ${numbers.text(row.d_sae)}`,
        row.sae ? row.architecture : cells.KINDS[row.kind],
        ...(cell.rank === null ? [] : [cells.rankText(cell.rank)]),
        ...(cell.order === "fails" ? [cells.ORDERS.fails[1]] : []),
      ],
    };
  }

  // From left to right, each better than all before it.
  function frontOf(points, better) {
    if (better === "neither") return [];
    const sign = better === "higher" ? 1 : -1;
    const found = [];
    const sorted = points.filter((point) => !point.reference).sort((a, b) => a.x - b.x || sign * (b.y - a.y));
    for (const point of sorted) {
      if (found.length && sign * (point.y - found.at(-1).y) <= 0) continue;
      point.front = true;
      found.push(point);
    }
    return found;
  }

  // -- the form

  function sync(now, column) {
    const tasks = Map.groupBy(board.here.order, cells.taskName);
    byId("plot-y").replaceChildren(
      ...[...tasks].map(([task, columns]) =>
        el(
          "optgroup",
          { label: task },
          columns.map((each) =>
            el("option", { value: each.key }, [each.metric, each.setting_label].filter(Boolean).join(" · ")),
          ),
        ),
      ),
    );
    byId("plot-y").value = column?.key ?? "";
    byId("plot-x").value = now.x;
    byId("plot-scale").value = now.scale;
  }

  function start() {
    for (const [id, name] of [
      ["plot-y", "y"],
      ["plot-x", "x"],
      ["plot-scale", "scale"],
    ]) {
      byId(id).addEventListener("change", (event) => state.set({ [name]: event.target.value }));
    }
    let waiting = 0;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => {
        if (state.current().view === "plot") show(state.current(), filters.kept(state.current()));
      }, 100);
    });
  }

  // -- the figure

  function tooltip(point, [x, y], width) {
    const tip = byId("tip");
    const [name, ...lines] = point.told;
    tip.replaceChildren(el("b", {}, name), ...lines.map((line) => el("span", {}, line)));
    tip.hidden = false;
    tip.style.left = `${Math.min(x + 14, width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${y + 14}px`;
  }

  function legend(groups, points, line, rules, axis) {
    const sign = (group, attributes) =>
      svg(
        "svg",
        { width: 18, height: 18, viewBox: "-9 -9 18 18", "aria-hidden": "true" },
        chart.symbol(group, 0, 0, attributes),
      );
    const used = groups
      .map((name, group) => [name, group])
      .filter(([, group]) => points.some((point) => point.group === group && !point.reference));
    return el(
      "ul",
      { class: "legend" },
      used.map(([name, group]) => el("li", {}, sign(group, { fill: chart.colour(group) }), name)),
      points.some((point) => point.reference)
        ? el("li", {}, sign(0, { class: "point reference" }), "hollow: a control, a reference only")
        : [],
      line.length > 1
        ? el(
            "li",
            {},
            el("span", { class: "front-sign", "aria-hidden": "true" }),
            `front: no SAE here is as good with as little ${axis.name}`,
          )
        : [],
      rules.length
        ? el("li", {}, el("span", { class: "chance-sign", "aria-hidden": "true" }), "dashed: a reference")
        : [],
      el("li", {}, "whiskers: intervals"),
    );
  }

  // References are drawn where they do not squeeze the SAEs together; those without a place on the axis below as lines.
  function references(rows, column, axis, points) {
    const ends = points.flatMap((point) => [point.y, point.yLow, point.yHigh]).filter((v) => v !== null);
    const least = Math.min(...ends),
      most = Math.max(...ends),
      span = most - least;
    const found = rows
      .filter((row) => !row.sae)
      .map((row) => ({ row, name: row.name, value: board.cell(column, row.i)?.value ?? null }));
    const known = found.filter(({ value }) => value !== null);
    const near = known.filter(({ value }) => value >= least - span && value <= most + span);
    return {
      placed: new Set(near.filter(({ row }) => row.kind !== "chance" && axis.value(row)).map(({ row }) => row)),
      rules: near.filter(({ row }) => row.kind === "chance" || !axis.value(row)),
      off: known.filter((each) => !near.includes(each)),
    };
  }

  function drawing(now, column, site, points, line, rules) {
    const width = Math.min(WIDEST, Math.max(LOWEST, byId("figure").clientWidth)),
      axis = AXES[now.x];
    const yTitle = [column.metric, cells.unit(column)].filter(Boolean).join(", ");
    return chart.drawn({
      width,
      height: HEIGHT,
      points,
      line,
      rules,
      scale: now.scale,
      xTitle: axis.title,
      yTitle: `${yTitle.slice(0, LONGEST_TITLE)} ${cells.DIRECTIONS[column.better][0]}`,
      label: `${column.metric} against ${axis.title}: ${numbers.count(points.length, "row")} at ${site}`,
      handlers: {
        over: (point, at) => tooltip(point, at, width),
        out: () => {
          byId("tip").hidden = true;
        },
        chosen: (point) => state.set({ row: point.row.id, at: column.key }),
      },
    });
  }

  function figure(now, column, across, site, rows) {
    const groups = [...new Set(board.here.rows.map((row) => row.architecture))];
    const picked = new Set(now.pick),
      axis = AXES[now.x];
    const mine = rows.filter((row) => row.site === site);
    const point = (row) => pointOf(row, column, axis, across, groups, picked);
    const saes = mine
      .filter((row) => row.sae)
      .map(point)
      .filter(Boolean);
    if (saes.length === 0)
      return [el("p", { class: "message" }, `No SAE shown has both ${column.metric} and ${axis.title}.`)];
    const line = frontOf(saes, column.better);
    const { placed, rules, off } = references(mine, column, axis, saes);
    // Those of the front lie on top.
    const points = [...saes, ...[...placed].map(point)].sort((a, b) => a.front - b.front);
    const told = [
      ["On the front", line.map(({ row }) => row.name)],
      ["Off the figure", off.map(({ name, value }) => `${name} ${numbers.text(value)}`)],
    ];
    return [
      drawing(now, column, site, points, line, rules),
      legend(groups, points, line, rules, axis),
      ...told
        .filter(([, names]) => names.length)
        .map(([head, names]) => el("p", { class: "names" }, el("b", {}, `${head}: `), names.join(", "))),
    ];
  }

  function caption(column, site, sites) {
    const told = `${cells.taskName(column)} ${column.metric}, ${cells.DIRECTIONS[column.better][1]}, at ${site}.`;
    if (sites === 1) return told;
    return `${told} Sites do not compare: of the ${sites} shown, this one has most SAEs; the filters choose another.`;
  }

  async function show(now, rows) {
    const mine = ++turn,
      column = ofState(now),
      axis = AXES[now.x];
    sync(now, column);
    byId("tip").hidden = true;
    const { site, sites } = siteOf(rows);
    if (column === null || site === null) {
      byId("figure-body").replaceChildren(el("p", { class: "message" }, "Nothing on the board fits these filters."));
      byId("figure-caption").textContent = "";
      return;
    }
    const across =
      board.here.columns.find((each) => each.task === "core" && each.current && each.metric === axis.metric) ?? null;
    await board.allCells([column, ...(across ? [across] : [])]);
    if (mine !== turn) return;
    byId("figure-body").replaceChildren(...figure(now, column, across, site, rows));
    byId("figure-caption").textContent = caption(column, site, sites);
  }

  return { show, start };
})();
