// A scatter of points with whiskers, drawn as SVG: shapes and colours by group, a front, dashed lines for chance.
"use strict";

const chart = (() => {
  const { svg } = board;
  const COLOURS = ["#2b8cd9", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7f7f7f"];
  const SIZE = 6,
    LEFT = 74,
    RIGHT = 18,
    TOP = 14,
    BOTTOM = 52;
  const LETTER = 6.6,
    LONGEST_NAME = 40,
    MOST_NAMES = 20;
  const polygon =
    (...points) =>
    (x, y) => ({ tag: "path", d: `M${points.map(([dx, dy]) => `${x + SIZE * dx},${y + SIZE * dy}`).join("L")}Z` });
  const SHAPES = [
    (x, y) => ({ tag: "circle", cx: x, cy: y, r: SIZE * 0.9 }),
    polygon([-0.85, -0.85], [0.85, -0.85], [0.85, 0.85], [-0.85, 0.85]),
    polygon([0, -1.1], [1.05, 0.8], [-1.05, 0.8]),
    polygon([0, -1.2], [1.2, 0], [0, 1.2], [-1.2, 0]),
    polygon([0, 1.1], [1.05, -0.8], [-1.05, -0.8]),
    polygon(
      [-0.35, -1],
      [0.35, -1],
      [0.35, -0.35],
      [1, -0.35],
      [1, 0.35],
      [0.35, 0.35],
      [0.35, 1],
      [-0.35, 1],
      [-0.35, 0.35],
      [-1, 0.35],
      [-1, -0.35],
      [-0.35, -0.35],
    ),
  ];

  function symbol(group, x, y, attributes = {}) {
    const { tag, ...shape } = SHAPES[group % SHAPES.length](x, y);
    return svg(tag, { ...shape, ...attributes });
  }

  const colour = (group) => COLOURS[group % COLOURS.length];
  const text = (x, y, content, attributes = {}) => svg("text", { x, y, ...attributes }, content);

  function axes({ width, height, x, y, xTitle, yTitle }) {
    const bottom = height - BOTTOM;
    return [
      y.ticks.map((v) => [
        svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y.at(v), y2: y.at(v) }),
        text(LEFT - 8, y.at(v) + 4, y.text(v), { "text-anchor": "end" }),
      ]),
      x.ticks.map((v) => [
        svg("line", { class: "grid", x1: x.at(v), x2: x.at(v), y1: TOP, y2: bottom }),
        text(x.at(v), bottom + 18, x.text(v), { "text-anchor": "middle" }),
      ]),
      svg("path", { class: "axis", d: `M${LEFT},${TOP}V${bottom}H${width - RIGHT}` }),
      text((LEFT + width - RIGHT) / 2, height - 8, xTitle, { "text-anchor": "middle", class: "title" }),
      text(0, 0, yTitle, {
        "text-anchor": "middle",
        class: "title",
        transform: `translate(16 ${(TOP + bottom) / 2}) rotate(-90)`,
      }),
    ];
  }

  function whiskers({ x, y }, point) {
    const lines = [];
    const at = [x.at(point.x), y.at(point.y)];
    if (point.yLow !== null) lines.push(`M${at[0]},${y.at(point.yLow)}V${y.at(point.yHigh)}`);
    if (point.xLow !== null) lines.push(`M${x.at(point.xLow)},${at[1]}H${x.at(point.xHigh)}`);
    return lines.length ? [svg("path", { class: "whiskers", d: lines.join(""), stroke: colour(point.group) })] : [];
  }

  // A point is a button: it can be reached by the keyboard, says what it is, and leads to its row.
  function dot({ x, y }, point, handlers) {
    const at = [x.at(point.x), y.at(point.y)];
    const look = point.reference
      ? { class: "point reference", color: colour(point.group) }
      : { class: `point${point.front ? " front" : ""}`, fill: colour(point.group) };
    const link = svg(
      "g",
      { role: "button", tabindex: "0", "aria-label": point.told.join(", ") },
      whiskers({ x, y }, point),
      symbol(point.group, ...at, look),
      point.picked ? svg("circle", { class: "halo", cx: at[0], cy: at[1], r: SIZE * 2 }) : [],
    );
    const over = () => handlers.over(point, at);
    for (const [name, handler] of Object.entries({
      mouseenter: over,
      focus: over,
      mouseleave: handlers.out,
      blur: handlers.out,
      click: () => handlers.chosen(point),
    })) {
      link.addEventListener(name, handler);
    }
    link.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        handlers.chosen(point);
      }
    });
    return link;
  }

  // Names beside the points, those of the front first, wherever they hide no other name and no point.
  const boxOf = ({ x, y }, point) => [
    x.at(point.x) - SIZE,
    y.at(point.y) - SIZE,
    x.at(point.x) + SIZE,
    y.at(point.y) + SIZE,
  ];
  const apart = (a) => (b) => a[2] < b[0] || a[0] > b[2] || a[3] < b[1] || a[1] > b[3];

  function names({ x, y }, points, rules, width) {
    const taken = points.map((point) => boxOf({ x, y }, point));
    for (const { name, value } of rules) {
      taken.push([width - RIGHT - LETTER * name.length, y.at(value) - 20, width, y.at(value)]);
    }
    const wanted = points.length > MOST_NAMES ? points.filter((point) => point.front) : points;
    return wanted
      .toSorted((a, b) => b.front - a.front)
      .flatMap((point) => {
        const { name } = point.row;
        const at = [x.at(point.x), y.at(point.y)];
        const right = [at[0] + 6, at[1] - 22, at[0] + 6 + LETTER * name.length, at[1] - 7];
        const left = [at[0] - 6 - LETTER * name.length, right[1], at[0] - 6, right[3]];
        const box = [right, left].find((each) => each[0] > LEFT && each[2] < width - RIGHT && taken.every(apart(each)));
        if (!box || name.length > LONGEST_NAME) return [];
        taken.push(box);
        const anchor = box === right ? ["start", box[0]] : ["end", box[2]];
        return [text(anchor[1], at[1] - 10, name, { "text-anchor": anchor[0], class: "name" })];
      });
  }

  const front = ({ x, y }, points) => {
    if (points.length < 2) return [];
    const places = points.map((point) => `${x.at(point.x)},${y.at(point.y)}`);
    return [svg("polyline", { class: "front-line", points: places.join(" ") })];
  };

  function drawn({ width, height, points, line, rules, xTitle, yTitle, scale, label, handlers }) {
    const ends = (axis) =>
      points.flatMap((point) => [point[axis], point[`${axis}Low`], point[`${axis}High`]]).filter((v) => v !== null);
    const x = scales.made(scale, ends("x"), LEFT, width - RIGHT);
    const y = scales.made(scale, [...ends("y"), ...rules.map(({ value }) => value)], height - BOTTOM, TOP);
    const lines = rules.map(({ name, value }) => [
      svg("line", { class: "chance", x1: LEFT, x2: width - RIGHT, y1: y.at(value), y2: y.at(value) }),
      text(width - RIGHT - 4, y.at(value) - 5, name, { "text-anchor": "end", class: "chance" }),
    ]);
    return svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": label },
      axes({ width, height, x, y, xTitle, yTitle }),
      lines,
      front({ x, y }, line),
      names({ x, y }, points, rules, width),
      points.map((point) => dot({ x, y }, point, handlers)),
    );
  }

  return { drawn, symbol, colour };
})();
