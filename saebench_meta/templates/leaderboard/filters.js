// Which rows are shown, and which columns.
"use strict";

const filters = (() => {
  const { el, byId } = board;
  const FIELDS = ["q", "model", "hook", "arch", "width_min", "width_max", "l0_min", "l0_max"];
  const TYPED = ["q", "width_min", "width_max", "l0_min", "l0_max"];

  const within = (value, least, most) =>
    (least === "" && most === "") ||
    (value !== null &&
      value >= (least === "" ? -Infinity : Number(least)) &&
      value <= (most === "" ? Infinity : Number(most)));

  // A reference belongs to its site: what is asked of an SAE is not asked of it.
  function keeps(now, words) {
    return (row) => {
      if ((now.model && row.model !== now.model) || (now.hook && row.hook !== now.hook)) return false;
      if (!row.sae) return now.refs === "yes";
      return (
        (!now.arch || row.architecture === now.arch) &&
        within(row.d_sae, now.width_min, now.width_max) &&
        within(row.l0, now.l0_min, now.l0_max) &&
        words.every((word) => row.text.includes(word))
      );
    };
  }

  function kept(now) {
    const found = board.here.rows.filter(keeps(now, now.q.toLowerCase().split(/\s+/).filter(Boolean)));
    const sites = new Set(found.filter((row) => row.sae).map((row) => row.site));
    return found.filter((row) => row.sae || sites.has(row.site));
  }

  // -- the form

  function options(node, name, values, chosen) {
    const wanted = chosen && !values.includes(chosen) ? [...values, chosen] : values;
    node.replaceChildren(
      el("option", { value: "" }, `any ${name}`),
      ...wanted.map((value) => el("option", { value }, value)),
    );
    node.value = chosen;
  }

  const distinct = (rows, name) => [...new Set(rows.map((row) => row[name]))].sort((a, b) => a.localeCompare(b, "en"));

  function sync(now) {
    const saes = board.here.rows.filter((row) => row.sae);
    const there = saes.filter((row) => !now.model || row.model === now.model);
    options(byId("model"), "model", distinct(saes, "model"), now.model);
    options(byId("hook"), "site", distinct(there, "hook"), now.hook);
    options(byId("arch"), "architecture", distinct(there, "architecture"), now.arch);
    for (const name of TYPED) if (byId(name).value !== now[name]) byId(name).value = now[name];
    byId("group").checked = now.group === "yes";
    byId("refs").checked = now.refs === "yes";
    const used = FIELDS.filter((name) => now[name] !== "").length;
    byId("used").textContent = used ? `${used} in use` : "";
    byId("clear").hidden = used === 0;
  }

  function start() {
    for (const name of FIELDS) {
      const typed = TYPED.includes(name);
      byId(name).addEventListener(typed ? "input" : "change", (event) =>
        state.set({ [name]: event.target.value, ...(name === "model" ? { hook: "" } : {}) }, typed),
      );
    }
    for (const name of ["group", "refs"]) {
      byId(name).addEventListener("change", (event) => state.set({ [name]: event.target.checked ? "yes" : "no" }));
    }
    byId("clear").addEventListener("click", () => {
      state.set(Object.fromEntries(FIELDS.map((name) => [name, ""])));
      byId("q").focus();
    });
    byId("filters").addEventListener("submit", (event) => event.preventDefault());
    byId("choose").addEventListener("click", choose);
    byId("choices-filter").addEventListener("input", narrow);
    for (const [id, of] of [
      ["choices-main", null],
      ["choices-all", () => true],
      ["choices-none", () => false],
    ]) {
      byId(id).addEventListener("click", () => tick((column) => (of === null ? column.shown : of(column))));
    }
  }

  // -- the columns

  const boxes = () => [...byId("choices-list").querySelectorAll("input")];
  const told = (column) =>
    [column.setting_label, column.current ? "" : "old version", column.main ? "main" : ""].filter(Boolean).join(" · ");

  function choice(column, chosen) {
    const box = el("input", { type: "checkbox", value: String(column.i), checked: chosen ? "" : null });
    const text = el(
      "span",
      {},
      el("b", {}, column.metric),
      cells.arrow(column),
      el(
        "small",
        {},
        [cells.unit(column), told(column), numbers.count(column.filled, "SAE")].filter(Boolean).join(" · "),
      ),
      el("small", {}, column.help),
    );
    return el("label", { class: "choice" }, box, text);
  }

  function choose() {
    const chosen = new Set(state.columns());
    const tasks = Map.groupBy(board.here.order, cells.taskName);
    byId("choices-list").replaceChildren(
      ...[...tasks].map(([task, columns]) =>
        el(
          "fieldset",
          {},
          el("legend", {}, task),
          columns.map((column) => choice(column, chosen.has(column))),
        ),
      ),
    );
    byId("choices-list").onchange = applied;
    byId("choices-filter").value = "";
    byId("choices").showModal();
  }

  function tick(wanted) {
    for (const box of boxes())
      if (!box.closest("label").hidden) box.checked = wanted(board.here.columns[Number(box.value)]);
    applied();
  }

  function applied() {
    const chosen = boxes()
      .filter((box) => box.checked)
      .map((box) => board.here.columns[Number(box.value)]);
    const usual = board.here.columns.filter((column) => column.shown);
    const same = chosen.length === usual.length && chosen.every((column) => column.shown);
    state.set({ col: same ? [] : chosen.length ? chosen.map(({ key }) => key) : [state.NO_COLUMN] });
  }

  function narrow(event) {
    const words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const label of byId("choices-list").querySelectorAll("label")) {
      const column = board.here.columns[Number(label.querySelector("input").value)];
      const text = `${column.key} ${column.help} ${told(column)}`.toLowerCase();
      label.hidden = !words.every((word) => text.includes(word));
    }
    for (const set of byId("choices-list").querySelectorAll("fieldset")) {
      set.hidden = ![...set.querySelectorAll("label")].some((label) => !label.hidden);
    }
  }

  return { kept, sync, start };
})();
