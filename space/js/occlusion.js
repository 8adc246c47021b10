/** Which parts of the picture does the answer hang on? Hide them one after the other and ask the model again. */

import { normalise } from "./preprocess.js";

export const GRID = 12; // places along each side
const REACH = 1.5; // radius of a patch in places; patches overlap, so that no lesion falls between two
const NEGLIGIBLE = 1e-6; // keeps the odds of a certain answer finite

/**
 * Measure how much hiding each part of a picture takes from one class.
 *
 * A patch with soft edges is darkened to black, the colour of air in MRI, so that dark parts of the picture never count.
 *
 * @param {import("./model.js").Model} model
 * @param {{data: Uint8Array, width: number, height: number, channels: 1 | 3}} square - What the model sees.
 * @param {import("./facts.js").Facts} facts
 * @param {number} label - Index of the class.
 * @param {number} probability - Of that class, nothing hidden.
 * @param {{onRow: (done: number) => Promise<void>}} hooks - Called after each row; throws to cancel.
 * @returns {Promise<{grid: number, evidence: number[], lowest: number}>} Row by row the fall in log-odds, which shows
 *   differences where probabilities are close to 1; and the lowest probability met.
 */
export async function occlude(model, square, facts, label, probability, { onRow }) {
  const evidence = [];
  let lowest = probability;
  const size = 3 * square.width * square.height;
  for (let row = 0; row < GRID; row++) {
    const batch = new Float32Array(GRID * size);
    for (let column = 0; column < GRID; column++) {
      batch.set(normalise(hidden(square, column, row), facts.preprocessing), column * size);
    }
    for (const probabilities of await model.classify(batch, GRID)) {
      lowest = Math.min(lowest, probabilities[label]);
      evidence.push(logOdds(probability) - logOdds(probabilities[label]));
    }
    await onRow(row + 1);
  }
  return { grid: GRID, evidence, lowest };
}

function hidden(square, column, row) {
  const { width, height, channels } = square;
  const data = square.data.slice();
  const across = profile(width, column);
  const down = profile(height, row);
  for (let y = 0; y < height; y++) {
    if (down[y] === 0) continue;
    for (let x = 0; x < width; x++) {
      const kept = 1 - across[x] * down[y];
      const at = (y * width + x) * channels;
      for (let c = 0; c < channels; c++) data[at + c] = Math.round(data[at + c] * kept);
    }
  }
  return { ...square, data };
}

/** How strongly each pixel along a side is hidden: 1 at the centre, a raised cosine down to 0 at the radius. */
function profile(side, place) {
  const step = side / GRID;
  const centre = (place + 0.5) * step;
  return Float64Array.from({ length: side }, (_, pixel) => {
    const distance = Math.abs(pixel + 0.5 - centre) / (REACH * step);
    return distance < 1 ? Math.cos((distance * Math.PI) / 2) ** 2 : 0;
  });
}

function logOdds(probability) {
  const p = Math.min(Math.max(probability, NEGLIGIBLE), 1 - NEGLIGIBLE);
  return Math.log(p / (1 - p));
}
