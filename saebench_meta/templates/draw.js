// Draws the figures of a page from the specifications in it, in the page's colours.
(() => {
  const refuse = () => Promise.reject(new Error("a figure may not load anything"));
  const loader = { load: refuse, sanitize: refuse, http: refuse, file: refuse };

  function config() {
    const style = getComputedStyle(document.documentElement);
    const [ink, soft, line] = ["--ink", "--soft", "--line"].map((name) => style.getPropertyValue(name).trim());
    const text = { labelColor: ink, titleColor: ink };
    return {
      background: "transparent",
      axis: { ...text, gridColor: line, domainColor: soft, tickColor: soft },
      header: text,
      legend: text,
      text: { color: ink },
      title: { color: ink, subtitleColor: soft },
      view: { stroke: line },
    };
  }

  function draw(source) {
    const target = source.previousElementSibling.firstElementChild;
    const options = {
      actions: { export: true, source: false, compiled: false, editor: false },
      ast: true,
      config: config(),
      loader,
      mode: "vega-lite",
      renderer: "svg",
    };
    Promise.resolve()
      .then(() => vegaEmbed(target, JSON.parse(source.textContent), options))
      .catch((error) => { target.textContent = `This figure cannot be drawn: ${error.message}`; });
  }

  const drawAll = () => document.querySelectorAll("script.spec").forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
