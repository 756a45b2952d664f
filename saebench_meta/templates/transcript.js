// The questions of a transcript: chosen by what stands in the address, drawn a few at a time; texts become text nodes only.
"use strict";

(() => {
  const STEP = 25;
  const WAIT = 150;
  const at = (id) => document.getElementById(id);
  const [form, list, more] = [at("filter"), at("questions"), at("more")];
  const { texts, questions } = JSON.parse(at("data").textContent);
  const folded = texts.map((text) => text.toLowerCase());
  const MARKS = { right: ["✓", "holds"], wrong: ["✗", "fails"], unanswered: ["?", "open"] };

  function el(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children.flat());
    return node;
  }

  // -- one question

  // Tokens on which a latent is active stand in the judge's marks.
  function marked(text) {
    return text.split(/(«[^«»]*»)/).map((part, i) => (i % 2 ? el("mark", {}, part) : part));
  }

  const passage = (place) => el("span", { class: "text", dir: "auto" }, marked(texts[place]));

  function option(question, place, i) {
    const [right, chosen] = [i === question.right, i === question.answer];
    const said = right && chosen ? "✓ right, chosen" : right ? "right" : chosen ? "✗ chosen" : "";
    const kind = `${right ? "answer-right" : ""} ${chosen ? "answer-chosen" : ""}`;
    return el("li", { class: kind }, el("span", {}, String(i + 1)), el("b", {}, said), passage(place));
  }

  const line = (name, place) => (texts[place] ? el("p", {}, `${name}: `, passage(place)) : []);

  function card(question) {
    const [sign, style] = MARKS[question.verdict];
    const title = el("h2", { tabindex: "-1" }, question.latent ? `Latent ${question.latent} ` : []);
    title.append(el("span", { class: style }, `${sign} ${question.verdict}`));
    title.append(el("small", {}, `${question.kind}, ${question.id}`));
    const known = question.more.map(([name, place], i) => [i ? ", " : "", `${name}: `, passage(place)]).flat();
    return el(
      "li",
      { class: "question" },
      title,
      el("ul", { class: "described" }, question.description.map((place) => el("li", {}, passage(place)))),
      el("ol", { class: "options" }, question.options.map((place, i) => option(question, place, i))),
      line("Judge", question.words),
      line("No answer", question.problem),
      known.length ? el("p", {}, el("small", {}, known)) : [],
    );
  }

  // -- which ones

  function matches(wanted) {
    const query = (wanted.text ?? "").trim().toLowerCase();
    const hit = query ? folded.map((text) => text.includes(query)) : null;
    const places = (q) => [...q.description, ...q.options, q.words, q.problem, ...q.more.map(([, place]) => place)];
    return questions.filter((q) =>
      (!wanted.verdict || q.verdict === wanted.verdict)
      && (!wanted.kind || q.kind === wanted.kind)
      && (!wanted.latent || q.latent === wanted.latent.trim())
      && (!hit || q.id.toLowerCase().includes(query) || places(q).some((place) => hit[place])));
  }

  const integer = (n) => n.toLocaleString("en-GB");

  function told(found) {
    const count = (verdict) => found.filter((q) => q.verdict === verdict).length;
    const parts = Object.keys(MARKS).map((verdict) => `${integer(count(verdict))} ${verdict}`);
    return `${integer(found.length)} of ${integer(questions.length)} questions: ${parts.join(", ")}`;
  }

  let found = [];

  function draw() {
    const from = list.childElementCount;
    list.append(...found.slice(from, from + STEP).map(card));
    const left = found.length - list.childElementCount;
    more.hidden = left === 0;
    more.textContent = `Show ${Math.min(left, STEP)} more of ${integer(left)}`;
    return list.children[from];
  }

  const read = () => Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

  function show() {
    const wanted = read();
    for (const field of form.elements) {
      const typing = field === document.activeElement && field.tagName === "INPUT";
      if (!typing) field.value = wanted[field.name] ?? "";
    }
    found = matches(wanted);
    at("status").textContent = told(found);
    list.replaceChildren();
    draw();
  }

  // `replace`, so that each letter typed is no step of the browser's history.
  function go() {
    const filled = [...form.elements].filter((field) => field.value.trim());
    location.replace(`#${new URLSearchParams(filled.map((field) => [field.name, field.value]))}`);
  }

  let waiting;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(go, WAIT);
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(waiting);
    go();
  });
  at("skip").addEventListener("click", (event) => {
    event.preventDefault();
    list.focus();
  });
  more.addEventListener("click", () => draw().querySelector("h2").focus());
  addEventListener("hashchange", show);
  form.hidden = false;
  show();
})();
