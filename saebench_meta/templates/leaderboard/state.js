// What is shown, as the page's address: whoever follows a link sees the same, and going back undoes a step.
"use strict";

const state = (() => {
  const NONE = {
    view: "table",
    sort: "name",
    dir: "asc",
    group: "yes",
    refs: "yes",
    q: "",
    model: "",
    hook: "",
    arch: "",
    width_min: "",
    width_max: "",
    l0_min: "",
    l0_max: "",
    x: "l0",
    y: "",
    scale: "linear",
    base: "",
    row: "",
    at: "",
    theme: "",
  };
  const LISTS = ["col", "pick"],
    NO_COLUMN = "none";
  const CHOICES = {
    view: ["table", "plot", "compare"],
    dir: ["asc", "desc"],
    group: ["yes", "no"],
    refs: ["yes", "no"],
    x: ["l0", "width"],
    scale: ["linear", "log"],
    theme: ["", "light", "dark"],
  };
  const watchers = [];
  let now = null;

  function read(hash) {
    const found = new URLSearchParams(hash.replace(/^#/, ""));
    const made = {};
    for (const name in NONE) {
      const value = found.get(name) ?? NONE[name];
      made[name] = CHOICES[name] && !CHOICES[name].includes(value) ? NONE[name] : value;
    }
    for (const name of LISTS) made[name] = [...new Set(found.getAll(name))];
    return made;
  }

  function address(values) {
    const out = new URLSearchParams();
    for (const name in NONE) if (values[name] !== NONE[name]) out.set(name, values[name]);
    for (const name of LISTS) values[name].forEach((value) => out.append(name, value));
    return `#${out}`;
  }

  const tell = (before) => watchers.forEach((watcher) => watcher(now, before));

  // `quiet` where a step is too small to be undone alone, as a letter typed.
  function set(changes, quiet = false) {
    const before = now;
    now = { ...now, ...changes };
    const target = address(now);
    if (target === address(before)) return;
    history[quiet ? "replaceState" : "pushState"](null, "", target);
    tell(before);
  }

  function follow() {
    const before = now;
    now = read(location.hash);
    if (before === null || address(now) !== address(before)) tell(before);
  }

  function start(watcher) {
    watchers.push(watcher);
    addEventListener("popstate", follow);
    follow();
  }

  const current = () => now;
  const columns = () => {
    const asked = new Set(now.col),
      { order } = board.here;
    const chosen = order.filter(({ key }) => asked.has(key));
    return chosen.length || asked.has(NO_COLUMN) ? chosen : order.filter((column) => column.shown);
  };
  const picked = () => now.pick.map(board.rowOf).filter(Boolean);

  return { NO_COLUMN, set, start, current, columns, picked };
})();
