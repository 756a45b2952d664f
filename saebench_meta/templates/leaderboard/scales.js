// From numbers to places on an axis.
"use strict";

const scales = (() => {
  const STEPS = [1, 2, 5, 10],
    TICKS = 6,
    MARGIN = 0.06;

  function step(span) {
    const rough = span / TICKS,
      power = 10 ** Math.floor(Math.log10(rough));
    return power * STEPS.find((n) => n * power >= rough * 0.999);
  }

  function linear(least, most, from, to) {
    const margin = (most - least || Math.abs(most) || 1) * MARGIN;
    const low = least - margin,
      high = most + margin,
      by = step(high - low);
    const first = Math.ceil(low / by);
    const ticks = Array.from({ length: Math.floor(high / by) - first + 1 }, (_, i) => (first + i) * by);
    const decimals = Math.max(0, -Math.floor(Math.log10(by)));
    return {
      at: (v) => from + ((v - low) / (high - low)) * (to - from),
      ticks,
      text: (v) => numbers.text(v, decimals > 8 ? null : decimals),
    };
  }

  function log(least, most, from, to) {
    const inner = linear(Math.log10(least), Math.log10(most), from, to);
    const wide = most / least > 30;
    const ticks = [];
    for (let power = Math.floor(Math.log10(least)) - 1; power <= Math.ceil(Math.log10(most)); power++) {
      for (const n of wide ? [1] : [1, 2, 3, 5, 7]) ticks.push(n * 10 ** power);
    }
    const at = (v) => inner.at(Math.log10(v));
    return { at, ticks: ticks.filter((v) => (at(v) - from) * (at(v) - to) <= 0), text: (v) => numbers.text(v) };
  }

  const made = (kind, values, from, to) => {
    const least = Math.min(...values),
      most = Math.max(...values);
    return kind === "log" && least > 0 ? log(least, most, from, to) : linear(least, most, from, to);
  };

  return { made };
})();
