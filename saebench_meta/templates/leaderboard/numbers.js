// Numbers as the chunks hold them, and as they are read.
"use strict";

const numbers = (() => {
  const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const VALUE = 2,
    INTERVAL = 4;
  const MOST_DECIMALS = 8,
    SIGNIFICANT = 4,
    WHOLE = 1e15;
  const codes = new Uint8Array(128);
  [...ALPHABET].forEach((letter, i) => {
    codes[letter.charCodeAt(0)] = i;
  });

  function oneEach(text) {
    const out = new Uint8Array(text.length);
    for (let i = 0; i < out.length; i++) out[i] = codes[text.charCodeAt(i)];
    return out;
  }

  // base-64 VLQ, as in source maps
  function vlq(text) {
    const out = [];
    let value = 0,
      scale = 1;
    for (let i = 0; i < text.length; i++) {
      const code = codes[text.charCodeAt(i)];
      value += (code & 31) * scale;
      scale *= 32;
      if (code < 32) {
        out.push(value % 2 ? -(value - 1) / 2 : value / 2);
        value = 0;
        scale = 1;
      }
    }
    return out;
  }

  function coded(found) {
    const at = vlq(found.at);
    return (i) => found.of[at[i] ?? 0];
  }

  const scaled = (value, decimals) => (decimals < 0 ? value * 10 ** -decimals : value / 10 ** decimals);

  // Values with intervals: `states` says of each whether it has a value and an interval.
  function estimates(text, states) {
    const of = (type) => new type(states.length).fill(NaN);
    const made = { value: of(Float64Array), low: of(Float64Array), high: of(Float64Array), decimals: of(Int16Array) };
    const read = vlq(text);
    let at = 0;
    states.forEach((state, i) => {
      if (!(state & VALUE)) return;
      const decimals = read[at++],
        value = read[at++];
      made.decimals[i] = decimals;
      made.value[i] = scaled(value, decimals);
      if (!(state & INTERVAL)) return;
      made.low[i] = scaled(value - read[at++], decimals);
      made.high[i] = scaled(value + read[at++], decimals);
    });
    return made;
  }

  const formats = new Map();
  function fixed(value, decimals) {
    if (!formats.has(decimals)) {
      const digits = { minimumFractionDigits: decimals, maximumFractionDigits: decimals };
      formats.set(decimals, new Intl.NumberFormat("en-GB", digits));
    }
    return formats.get(decimals).format(value).replace("-", "−");
  }

  const exponential = (value) => value.toExponential(SIGNIFICANT - 1).replaceAll("-", "−");

  const significant = new Intl.NumberFormat("en-GB", { maximumSignificantDigits: SIGNIFICANT });

  // With the decimals its interval allows, or with four significant digits; counts whole.
  function text(value, decimals = null) {
    const size = Math.abs(value);
    if (size >= WHOLE || (decimals ?? 0) > MOST_DECIMALS || (size > 0 && size < 1e-4 && decimals === null))
      return exponential(value);
    if (decimals !== null) return fixed(value, Math.max(0, decimals));
    if (size >= 10 ** SIGNIFICANT) return fixed(value, 0);
    return significant.format(value).replace("-", "−");
  }

  const interval = (low, high, decimals) => `[${text(low, decimals)}, ${text(high, decimals)}]`;
  const count = (n, one) => `${fixed(n, 0)} ${one}${n === 1 ? "" : "s"}`;

  return { VALUE, INTERVAL, oneEach, vlq, coded, estimates, text, interval, count };
})();
