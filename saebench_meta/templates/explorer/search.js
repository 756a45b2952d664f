// The search: a number is a latent; else tokens, whole before part, then explanations.
"use strict";

(() => {
  const { el, load, count, route, say, tables } = explorer;
  const WAIT = 150;
  const field = document.getElementById("query");
  const fold = (text) => text.trim().toLowerCase();

  function byToken(index, wanted) {
    const whole = [], part = [];
    const found = index.activity;
    if (!found) return [];
    const kinds = found.vocabulary.map((text) => (fold(text) === wanted ? 2 : fold(text).includes(wanted) ? 1 : 0));
    for (let latent = 0; latent < index.d_sae; latent++) {
      let best = 0;
      for (let i = latent * found.top; i < (latent + 1) * found.top; i++) best = Math.max(best, kinds[found.tokens[i]] ?? 0);
      if (best) (best === 2 ? whole : part).push(latent);
    }
    return [...whole, ...part];
  }

  function matches(index, known, query) {
    const wanted = fold(query);
    const found = new Set();
    if (/^\d{1,9}$/.test(wanted) && Number(wanted) < index.d_sae) found.add(Number(wanted));
    for (const latent of byToken(index, wanted)) found.add(latent);
    for (const [latent, text] of known) if (text.toLowerCase().includes(wanted)) found.add(latent);
    return [...found];
  }

  route("search", async (query) => {
    const index = await load("index");
    const known = await tables.explanations(index);
    if (document.activeElement !== field) field.value = query;
    const found = matches(index, known, query);
    const told = `${count(found.length, "latent")} for “${query}”`;
    say(told);
    return [el("h1", {}, told), ...(found.length ? tables.latents(index, "Latents found", found, known) : [])];
  });

  // `replace`, so that each letter typed is no step of the browser's history.
  const go = () => location.replace(fold(field.value) ? `#search/${encodeURIComponent(field.value.trim())}` : "#");
  let timer = 0;
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(go, WAIT);
  });
  document.getElementById("search").addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    go();
  });

  load("index").then((index) => {
    const places = [["#", "Start"]];
    if (index.steering) places.push(["#steering/0", "Steering"]);
    if (index.report) places.push([index.report, "Report"]);
    document.getElementById("places").append(...places.map(([href, text]) => el("li", {}, el("a", { href }, text))));
  }, () => {});
  explorer.start();
})();
