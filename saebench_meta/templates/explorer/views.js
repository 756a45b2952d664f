// The pages: start, a latent, a meta-latent, steering.
"use strict";

(() => {
  const { el, load, number, count, visible, route, tables, graph, histogram } = explorer;

  const section = (title, ...children) => el("section", {}, el("h2", {}, title), ...children);
  const facts = (pairs) => el("dl", {}, pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]).flat());
  const range = (n) => Array.from({ length: n }, (_, i) => i);

  function whole(text, below, what) {
    const value = Number(text);
    if (!/^\d{1,9}$/.test(text) || value >= below) throw new Error(`there is no ${what} ${text}: they are 0 to ${below - 1}`);
    return value;
  }

  // -- start

  route("", async () => {
    const index = await load("index");
    const known = await tables.explanations(index);
    const nodes = [el("h1", {}, `${index.title}: latents`), facts(index.facts)];
    if (index.notes.length) nodes.push(el("ul", { class: "notes" }, index.notes.map((note) => el("li", {}, note))));
    const first = index.shown.length ? index.shown : range(index.d_sae);
    nodes.push(section(index.shown.length ? "Latents with passages" : "Latents", ...tables.latents(index, "Latents", first, known)));
    if (index.metas) {
      const order = range(index.metas.latents.length).sort((a, b) => index.metas.latents[b] - index.metas.latents[a]);
      nodes.push(section("Meta-latents, those of most latents first", ...tables.metas(index, "Meta-latents", order)));
    }
    return nodes;
  });

  // -- a latent

  route("latent", async (rest) => {
    const index = await load("index");
    const latent = whole(rest, index.d_sae, "latent");
    const [known, found] = await Promise.all([tables.explanations(index), tables.decomposition(index)]);
    const shown = index.shown.includes(latent) ? await load(`latents/${latent}`) : null;
    const about = [];
    if (known.has(latent)) about.push(["explanation", known.get(latent)]);
    if (index.activity) {
      about.push(["active on", `${tables.share(index, latent)} of tokens`]);
      about.push(["largest activation", number(index.activity.maxima[latent])]);
      about.push(["most active on", tables.tokens(index, latent)]);
    }
    const nodes = [el("h1", {}, `Latent ${latent}`), facts(about)];
    if (found) nodes.push(...decomposed(index, found, latent, known));
    if (shown?.passages.length) nodes.push(section("Its activations", drawnTo((width) => histogram(shown.histogram, index.activity.maxima[latent], width))));
    if (shown?.boosted) nodes.push(logits(shown));
    nodes.push(section("Passages in which it is most active", ...(shown ? passages(index, latent, shown) : [unseen(index, latent)])));
    return nodes;
  });

  function unseen(index, latent) {
    if (!index.activity) return el("p", {}, "This folder was written without a language model.");
    if (index.activity.counts[latent] === 0) return el("p", {}, "It is active on none of the tokens looked at.");
    return el("p", {}, `They were collected for ${count(index.shown.length, "latent")}, not for this one. To have them, add `, el("code", {}, `--latent ${latent}`), " to ", el("code", {}, "saebench explore"), ".");
  }

  function decomposed(index, found, latent, known) {
    const metas = tables.metasOf(found, latent);
    if (!metas.length) return [section("Meta-latents", el("p", {}, "None is active on its decoder row."))];
    const activation = new Map(metas);
    const shownBar = (meta) => [tables.bar(activation.get(meta), metas[0][1]), number(activation.get(meta))];
    const parts = section("Meta-latents", ...tables.metas(index, "Its meta-latents", metas.map(([meta]) => meta), [["activation", shownBar]]));
    const others = graph.nearest(found, latent);
    if (!others.length) return [parts];
    const cosine = new Map(others);
    const extra = [
      [["cosine", tables.NUMBER], (other) => number(cosine.get(other))],
      ["shared meta-latents", (other) => graph.shared(found, latent, other).map(([meta]) => meta).join(", ")],
    ];
    const list = el("details", {}, el("summary", {}, count(others.length, "latent"), " as a table"),
      ...tables.latents(index, "Latents that share meta-latents", others.map(([other]) => other), known, extra));
    const text = "Latents that share its meta-latents, the nearest by the cosine of their activations over meta-latents. Squares are meta-latents; thicker lines, larger activations.";
    const picture = drawnTo((width) => graph.draw(index, found, latent, others, width));
    return [parts, section("Latents that share them", el("p", { class: "legend" }, text), picture, list)];
  }

  // A place that is drawn anew whenever its width changes.
  function drawnTo(draw) {
    const place = el("div", { class: "drawing" });
    let drawn = 0;
    new ResizeObserver(([entry]) => {
      const width = Math.round(entry.contentRect.width);
      if (width > 0 && width !== drawn) place.replaceChildren(draw((drawn = width)));
    }).observe(place);
    return place;
  }

  function logits(shown) {
    const column = (title, ranked, colour) => el("div", {}, el("h3", {}, title), ...tables.table(title, ["token", ["logit", tables.NUMBER]],
      ranked.map(([text, value]) => () => [tables.token(text), el("span", { class: colour }, value.toFixed(2))])));
    const text = "Logits of the decoder row alone through the final norm and the unembedding (logit lens): the layers between are passed over.";
    return section("Tokens it boosts and suppresses", el("p", { class: "legend" }, text),
      el("div", { class: "columns" }, column("Boosted", shown.boosted, "up"), column("Suppressed", shown.suppressed, "down")));
  }

  function passages(index, latent, shown) {
    if (!shown.passages.length) return [unseen(index, latent)];
    const largest = index.activity.maxima[latent];
    const one = (passage) => {
      const parts = passage.texts.map((text, i) => shaded(text, passage.activations[i], largest, i === passage.peak)).flat();
      const head = `${number(passage.activations[passage.peak])} in document ${passage.document}`;
      return el("li", {}, el("small", {}, head), el("p", { class: "passage" }, parts));
    };
    return [el("ol", { class: "passages" }, shown.passages.map(one))];
  }

  function shaded(text, activation, largest, peak) {
    const seen = text.replaceAll("\n", "↵\n");
    if (activation <= 0) return seen;
    const space = seen.length - seen.trimStart().length;
    const node = el(peak ? "mark" : "span", { title: number(activation) }, seen.slice(space) || seen);
    node.style.setProperty("--f", Math.min(1, activation / largest));
    return [space < seen.length ? seen.slice(0, space) : "", node];
  }

  // -- a meta-latent

  route("meta", async (rest) => {
    const index = await load("index");
    if (!index.metas) throw new Error("there is no meta_sae record in this folder");
    const meta = whole(rest, index.metas.latents.length, "meta-latent");
    const [known, found] = await Promise.all([tables.explanations(index), tables.decomposition(index)]);
    const pairs = found.byMeta[meta];
    const heading = el("h1", {}, `Meta-latent ${meta}`);
    if (!pairs.length) return [heading, el("p", {}, "It is active on no latent's decoder row.")];
    const activation = new Map(pairs);
    const bar = (latent) => [tables.bar(activation.get(latent), pairs[0][1]), number(activation.get(latent))];
    const list = tables.latents(index, "Its latents", pairs.map(([latent]) => latent), known, [["activation", bar]]);
    return [heading, el("p", {}, `Active on the decoder rows of ${count(pairs.length, "latent")}, the strongest first.`), ...list];
  });

  // -- steering

  route("steering", async (rest) => {
    const index = await load("index");
    if (!index.steering) throw new Error("there is no city_steering record in this folder");
    const { cities, heads, pairs } = index.steering;
    const at = whole(rest || "0", cities.length, "city");
    const found = await load(`steering/${at}`);
    const city = chooser("City", "city", cities, at, (i) => { location.hash = `#steering/${i}`; });
    const place = el("div");
    const fillIn = (i) => place.replaceChildren(...effects(found, i));
    const target = chooser("Made into", "target", found.targets, 0, fillIn);
    fillIn(0);
    const about = "Log-probabilities, means over held-out prompts, without and with each edit: of both cities' values and of the likeliest other candidate. The largest of each edit is bold. An edit of meta-latents is named after what it should change.";
    const nodes = [el("h1", {}, `Steering: ${cities[at]}`), el("p", { class: "legend" }, about), el("div", { class: "choices" }, city, target), place];
    if (pairs.length) nodes.push(section("All ordered pairs", ...tables.table("Pairs of cities", heads, pairs.map((row) => () => row))));
    return nodes;
  });

  function chooser(label, id, options, chosen, change) {
    const select = el("select", { id }, options.map((text, i) => el("option", { value: i, ...(i === chosen ? { selected: "" } : {}) }, text)));
    select.addEventListener("change", () => change(Number(select.value)));
    return el("div", {}, el("label", { for: id }, label), select);
  }

  function effects(found, target) {
    const rows = found.rows.filter((row) => row[0] === target);
    return range(found.attributes.length).map((attribute) => {
      const here = rows.filter((row) => row[2] === attribute);
      const edits = [...new Set(here.map((row) => row[1]))];
      const values = new Map(here.map(([, edit, , candidate, value]) => [`${edit} ${candidate}`, value]));
      const best = new Map(edits.map((edit) => [edit, Math.max(...here.filter((row) => row[1] === edit).map((row) => row[4]))]));
      const cell = (edit, candidate) => {
        const value = values.get(`${edit} ${candidate}`);
        if (value === undefined) return "";
        return value === best.get(edit) ? el("b", {}, number(value)) : number(value);
      };
      const candidates = [...new Set(here.map((row) => row[3]))];
      const label = found.attributes[attribute];
      const lines = candidates.map((candidate) => () => [visible(found.candidates[candidate]), ...edits.map((edit) => cell(edit, candidate))]);
      return here.length ? section(label, ...tables.table(label, ["candidate", ...edits.map((edit) => [found.edits[edit], tables.NUMBER])], lines)) : "";
    });
  }
})();
