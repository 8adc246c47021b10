/** Raw intensities to 8 bits between two percentiles, number for number as hf_kdmri.data.pixels does it. */

import { Refusal } from "./refusal.js";

const PERCENTILES = [0.1, 99.9];

/**
 * Map intensities linearly so that percentiles 0.1 and 99.9 become 0 and 255; what lies outside is clipped.
 *
 * @param {ArrayLike<number>} values - At least one; finite.
 * @returns {{data: Uint8Array, low: number, high: number}} The pixels and what became 0 and 255.
 * @throws {Refusal} Not finite, or constant between the percentiles.
 */
export function windowTo8Bit(values) {
  const { smallest, largest, whole } = survey(values);
  const counted = whole && largest - smallest < 2 ** 16;
  const atRank = counted ? fromHistogram(values, smallest, largest) : fromSorted(values);
  const [low, high] = PERCENTILES.map((percentile) => {
    const position = (percentile / 100) * (values.length - 1);
    const rank = Math.floor(position);
    const next = atRank(Math.min(rank + 1, values.length - 1));
    return atRank(rank) + (next - atRank(rank)) * (position - rank);
  });
  if (high <= low) throw new Refusal("The picture is constant between its percentiles 0.1 and 99.9: nothing to classify.");
  const factor = 255 / (high - low);
  const shade = (value) => roundHalfEven((Math.min(Math.max(value, low), high) - low) * factor);
  const data = new Uint8Array(values.length);
  if (counted) {
    const table = Uint8Array.from({ length: largest - smallest + 1 }, (_, level) => shade(level + smallest));
    for (let i = 0; i < values.length; i++) data[i] = table[values[i] - smallest];
  } else {
    for (let i = 0; i < values.length; i++) data[i] = shade(values[i]);
  }
  return { data, low, high };
}

function survey(values) {
  let smallest = Infinity;
  let largest = -Infinity;
  let whole = true;
  for (let i = 0; i < values.length; i++) {
    const value = values[i];
    if (value < smallest) smallest = value;
    if (value > largest) largest = value;
    if (value !== Math.floor(value)) whole = false; // NaN, too
    if (value - value !== 0) throw new Refusal("The picture has pixels that are not finite (NaN or infinite).");
  }
  return { smallest, largest, whole };
}

/**
 * Round to the nearest whole number, halves to the even one, as numpy and Python do.
 *
 * @param {number} value - 0 or more.
 */
export function roundHalfEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 === 1 ? rounded - 1 : rounded;
}

function fromHistogram(values, smallest, largest) {
  const counts = new Uint32Array(largest - smallest + 1);
  for (let i = 0; i < values.length; i++) counts[values[i] - smallest] += 1;
  return (rank) => {
    let seen = 0;
    for (let level = 0; level < counts.length; level++) {
      seen += counts[level];
      if (seen > rank) return level + smallest;
    }
    return largest;
  };
}

function fromSorted(values) {
  const sorted = Float64Array.from(values).sort();
  return (rank) => sorted[rank];
}
