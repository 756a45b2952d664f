// The board: chunks of data are scripts, read once each when first needed; texts become text nodes only.
"use strict";

const board = (() => {
  const CELL = 1,
    DIGITS = 12,
    REPRODUCED = 32;
  const KINDS = ["sae", "control", "chance"];
  const ORDERS = ["none", "holds", "fails", "untested"];
  const VERDICTS = ["a", "b", "differs", "tie", "untested"];
  const chunks = new Map(),
    asked = new Map();
  const here = { columns: [], rows: [], warnings: [], sites: [] };

  const put = (name, value) => chunks.set(name, value);

  function load(name) {
    if (!asked.has(name)) asked.set(name, chunks.has(name) ? Promise.resolve() : scripted(name));
    return asked.get(name).then(() => chunks.get(name));
  }

  const scripted = (name) =>
    new Promise((resolve, reject) => {
      const node = el("script", { src: `data/${name}.js` });
      node.addEventListener("load", resolve);
      node.addEventListener("error", () => reject(new Error(`data/${name}.js cannot be read`)));
      document.head.append(node);
    });

  // -- nodes

  function dressed(node, attributes, children) {
    for (const name in attributes) {
      if (name === "on") Object.entries(attributes.on).forEach((pair) => node.addEventListener(...pair));
      else if (attributes[name] !== null) node.setAttribute(name, attributes[name]);
    }
    node.append(...children.flat(Infinity));
    return node;
  }

  const el = (tag, attributes = {}, ...children) => dressed(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    dressed(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const byId = (id) => document.getElementById(id);

  // -- rows and columns

  function open() {
    const found = chunks.get("board");
    here.warnings = found.warnings;
    here.block = found.block;
    here.columns = found.columns.map((column, i) => ({ ...column, i, cells: null, spans: new Map() }));
    here.order = ordered(here.columns);
    here.rows = rowsOf(found.rows);
    here.sites = [...new Map(here.rows.map((row) => [row.site, row])).values()].map(({ site, model, hook }) => ({
      site,
      model,
      hook,
    }));
  }

  // As a reader orders names: case aside, and numbers by size.
  const natural = (name) => name.toLowerCase().replace(/\d+/g, (digits) => digits.padStart(DIGITS, "0"));

  // Tasks that most SAEs have come first.
  function ordered(columns) {
    const most = new Map();
    for (const { task, filled } of columns) most.set(task, Math.max(filled, most.get(task) ?? 0));
    return columns.toSorted((a, b) => most.get(b.task) - most.get(a.task) || a.i - b.i);
  }

  // What a chunk holds of a column; null where the column has nothing of the kind.
  async function part(kind, column) {
    const chunk = column.within[kind];
    if (chunk === undefined) return null;
    const found = await load(`${kind}/${chunk}`);
    return found.values[found.columns.indexOf(column.i)];
  }

  function rowsOf(found) {
    const kinds = numbers.oneEach(found.kind);
    const texts = Object.fromEntries(
      ["model", "hook", "architecture", "badge"].map((name) => [name, numbers.coded(found[name])]),
    );
    const plain = ["id", "name", "ref", "weights", "d_in", "d_sae", "have", "of", "l0", "mse"];
    return found.id.map((_, i) => {
      const row = { i, kind: KINDS[kinds[i]], sae: kinds[i] === 0 };
      for (const name of plain) row[name] = found[name][i];
      for (const name in texts) row[name] = texts[name](i);
      row.site = `${row.model} · ${row.hook}`;
      row.natural = natural(row.name);
      row.text = `${row.name} ${row.ref} ${row.site} ${row.architecture} ${row.id} ${row.weights}`.toLowerCase();
      return row;
    });
  }

  const rowOf = (id) => here.rows.find((row) => row.id === id);
  const columnOf = (key) => here.columns.find((column) => column.key === key);

  // -- cells

  async function cells(column) {
    if (column.cells === null) column.cells = read(await part("cells", column));
    return column;
  }

  const allCells = (columns) => Promise.all(columns.map(cells));

  // Lists over the cells that are there become lists over all rows.
  function read(found) {
    const states = numbers.oneEach(found.state);
    const place = new Int32Array(states.length).fill(-1);
    let n = 0;
    states.forEach((state, i) => {
      if (state & CELL) place[i] = n++;
    });
    const listed = (name) => {
      const values = numbers.coded(found[name]);
      return (i) => values(place[i]);
    };
    return {
      states,
      place,
      ...numbers.estimates(found.numbers, states),
      rank: listed("ranks"),
      record: listed("records"),
      sample: listed("samples"),
      reason: listed("reasons"),
      reference: listed("references"),
      others: listed("others"),
    };
  }

  // Everything of one cell; null where there is none.
  function cell(column, i) {
    const { states, value, low, high, decimals, ...found } = column.cells;
    const state = states[i];
    if (!(state & CELL)) return null;
    const [n, unit, method] = found.sample(i);
    const known = Boolean(state & numbers.VALUE),
      sure = Boolean(state & numbers.INTERVAL);
    return {
      value: known ? value[i] : null,
      low: sure ? low[i] : null,
      high: sure ? high[i] : null,
      decimals: sure ? decimals[i] : null,
      order: ORDERS[(state >> 3) & 3],
      reproduced: Boolean(state & REPRODUCED),
      rank: found.rank(i) || null,
      n,
      unit,
      method,
      reason: found.reason(i),
      reference: found.reference(i),
      others: found.others(i),
      record: found.record(i) - 1,
    };
  }

  // Lowest and highest end of an interval among the SAEs of a site, which its bars are drawn in, if two have a value.
  function span(column, site) {
    if (!column.spans.has(site)) {
      const { value, low, high } = column.cells;
      let least = Infinity,
        most = -Infinity,
        known = 0;
      for (const row of here.rows) {
        if (!row.sae || row.site !== site || Number.isNaN(value[row.i])) continue;
        known += 1;
        least = Math.min(least, Number.isNaN(low[row.i]) ? value[row.i] : low[row.i]);
        most = Math.max(most, Number.isNaN(high[row.i]) ? value[row.i] : high[row.i]);
      }
      column.spans.set(site, known > 1 ? [least, most] : [NaN, NaN]);
    }
    return column.spans.get(site);
  }

  // Controls of a column: cell -> [name, value, low, high, decimals]; none where the column has none.
  async function controls(column) {
    if (!column.controls) {
      const found = await part("controls", column);
      column.controls = found === null ? [] : readControls(found);
    }
    return (i) => column.controls[column.cells.place[i]] ?? [];
  }

  function readControls(found) {
    const states = numbers.oneEach(found.state);
    const { value, low, high, decimals } = numbers.estimates(found.numbers, states);
    const some = (state, bit, number) => (state & bit ? number : null);
    let at = 0;
    const one = (name) => {
      const i = at++,
        state = states[i];
      const sure = (number) => some(state, numbers.INTERVAL, number);
      return {
        name,
        value: some(state, numbers.VALUE, value[i]),
        low: sure(low[i]),
        high: sure(high[i]),
        decimals: sure(decimals[i]),
      };
    };
    const names = numbers.coded(found.names);
    return Array.from({ length: found.count }, (_, i) => names(i).map(one));
  }

  // -- differences: "row row" -> { verdict, low, high, decimals, reason }, as the first row's minus the second's
  async function differences(column) {
    if (!column.differences) {
      const found = await part("differences", column);
      column.differences = found === null ? new Map() : readDifferences(found);
    }
    return column.differences;
  }

  function readDifferences(found) {
    const steps = numbers.vlq(found.pairs),
      codes = numbers.oneEach(found.verdicts);
    const tested = codes.map((code) => (code % 2 ? numbers.VALUE | numbers.INTERVAL : 0));
    const { low, high, decimals } = numbers.estimates(found.intervals, tested);
    const reason = numbers.coded(found.reasons);
    const made = new Map();
    let a = 0;
    codes.forEach((code, i) => {
      a += steps[2 * i];
      const sure = tested[i]
        ? { low: low[i], high: high[i], decimals: decimals[i] }
        : { low: null, high: null, decimals: null };
      made.set(`${a} ${a + steps[2 * i + 1]}`, { verdict: VERDICTS[code >> 1], reason: reason(i), ...sure });
    });
    return made;
  }

  // -- records of a row: [{ id, task, badge, facts: nested pairs of names and values }, …]
  async function records(row) {
    const block = await load(`records/${Math.floor(row.i / here.block)}`);
    const counts = numbers.vlq(block.counts),
      at = row.i % here.block;
    const first = counts.slice(0, at).reduce((sum, n) => sum + n, 0);
    const task = numbers.coded(block.task),
      badge = numbers.coded(block.badge),
      shape = numbers.coded(block.shape);
    const place = (i) => Array.from({ length: i }, (_, j) => shape(j)).filter((other) => other === shape(i)).length;
    const facts = (i) => {
      const { names, values } = block.shapes[shape(i)];
      return nested(names.map((path, j) => [path, numbers.coded(values[j])(place(i))]));
    };
    return Array.from({ length: counts[at] }, (_, n) => first + n).map((i) => ({
      id: block.ids[i],
      task: task(i),
      badge: badge(i),
      facts: facts(i),
    }));
  }

  // Values by their paths become lists in lists; names stay texts.
  function nested(pairs) {
    return [...Map.groupBy(pairs, ([path]) => path[0])].map(([name, inside]) => {
      const [[path, value]] = inside;
      return [name, path.length === 1 ? value : { of: nested(inside.map(([rest, leaf]) => [rest.slice(1), leaf])) }];
    });
  }

  return {
    here,
    put,
    load,
    el,
    svg,
    byId,
    open,
    rowOf,
    columnOf,
    cells,
    allCells,
    cell,
    span,
    controls,
    differences,
    records,
  };
})();
