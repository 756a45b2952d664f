// Data, addresses and nodes: chunks of data are scripts, read once each when first needed; texts become text nodes only.
"use strict";

const explorer = (() => {
  const chunks = new Map();
  const asked = new Map();
  const routes = new Map();

  const put = (name, value) => chunks.set(name, value);

  function load(name) {
    if (!asked.has(name)) {
      asked.set(name, new Promise((resolve, reject) => {
        const script = document.createElement("script");
        const missing = () => reject(new Error(`data/${name}.js cannot be read`));
        script.onload = () => (chunks.has(name) ? resolve(chunks.get(name)) : missing());
        script.onerror = missing;
        script.src = `data/${name}.js`;
        document.head.append(script);
      }));
    }
    return asked.get(name);
  }

  function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.flat());
    return node;
  }

  const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

  const number = (value) => value.toLocaleString("en-GB", { maximumSignificantDigits: 4 });
  const integer = (value) => value.toLocaleString("en-GB");
  const count = (n, one) => `${integer(n)} ${one}${n === 1 ? "" : "s"}`;

  // Line breaks and lone spaces would not be seen.
  function visible(text) {
    const shown = text.replaceAll("\n", "↵").replaceAll("\t", "⇥");
    return shown.trim() === "" ? "␣".repeat(Math.max(1, shown.length)) : shown;
  }

  const say = (text) => { document.getElementById("status").textContent = text; };
  const route = (name, view) => routes.set(name, view);

  let turn = 0;
  let shown = false;

  async function show() {
    const [name, rest] = split(location.hash.slice(1));
    if (name === "view") return;
    const mine = ++turn;
    const main = document.getElementById("view");
    let nodes;
    try {
      const view = routes.get(name);
      if (!view) throw new Error(`nothing is at #${name}`);
      nodes = await view(rest);
    } catch (error) {
      nodes = [el("h1", {}, "This cannot be shown"), el("p", {}, error.message)];
    }
    if (mine !== turn) return;
    main.replaceChildren(...nodes);
    const heading = main.querySelector("h1");
    document.title = heading.textContent;
    // Who types stays in the field, and who has just come stays at the top.
    if (shown && document.activeElement !== document.getElementById("query")) {
      heading.setAttribute("tabindex", "-1");
      heading.focus({ preventScroll: true });
      window.scrollTo(0, 0);
    }
    shown = true;
  }

  function split(address) {
    const at = address.indexOf("/");
    return at < 0 ? [address, ""] : [address.slice(0, at), decoded(address.slice(at + 1))];
  }

  function decoded(text) {
    try { return decodeURIComponent(text); } catch { return text; }
  }

  function start() {
    addEventListener("hashchange", show);
    document.getElementById("skip").addEventListener("click", (event) => {
      event.preventDefault();
      document.getElementById("view").focus();
    });
    show();
  }

  return { put, load, el, svg, number, integer, count, visible, say, route, start };
})();
