// Puts the views together.
"use strict";

const site = (() => {
  const { el, byId } = board;
  const THEMES = { "": "light", light: "dark", dark: "" };
  const VIEWS = { table, plot, compare };

  const say = (text) => {
    byId("status").textContent = text;
  };

  function themed({ theme, view }) {
    document.documentElement.dataset.view = view;
    document.documentElement.dataset.theme = theme;
    byId("theme").textContent = `Theme: ${theme || "auto"}`;
  }

  function warned() {
    const { warnings } = board.here;
    byId("warnings").hidden = warnings.length === 0;
    byId("warnings").replaceChildren(
      ...warnings.map((text) => el("p", {}, el("span", { "aria-hidden": "true" }, "⚠ "), text)),
    );
  }

  function counted(kept) {
    const saes = kept.filter((row) => row.sae).length,
      all = board.here.rows.filter((row) => row.sae).length;
    const part = saes === all ? "" : `${numbers.text(saes)} of `;
    say(`${part}${numbers.count(all, "SAE")}, ${numbers.count(kept.length - saes, "reference row")}`);
  }

  async function render(now) {
    themed(now);
    filters.sync(now);
    const kept = filters.kept(now);
    counted(kept);
    compare.tray(state.picked());
    for (const name of Object.keys(VIEWS)) {
      byId(`view-${name}`).hidden = name !== now.view;
      byId(`to-${name}`).setAttribute("aria-current", name === now.view ? "page" : "false");
    }
    try {
      await VIEWS[now.view].show(now, kept);
      if (now === state.current()) await detail.show(now);
    } catch (error) {
      say(`This cannot be shown: ${error.message}`);
    }
    document.documentElement.dataset.ready = "yes";
  }

  function start() {
    board.open();
    warned();
    byId("filtering").open = innerWidth >= table.NARROW;
    for (const name of Object.keys(VIEWS))
      byId(`to-${name}`).addEventListener("click", () => state.set({ view: name }));
    byId("theme").addEventListener("click", () => state.set({ theme: THEMES[state.current().theme] }));
    byId("link").addEventListener("click", () => {
      navigator.clipboard?.writeText(location.href).then(
        () => say("The link to this view is copied."),
        () => say("The address bar holds the link to this view."),
      );
    });
    for (const part of [filters, detail, plot, compare, download]) part.start();
    state.start(render);
  }

  return { say, start };
})();

site.start();
