/** From an 8-bit picture to the model's input, as the checkpoint's own processor (timm's evaluation transform) does it. */

import { resize } from "./resize.js";
import { roundHalfEven } from "./window.js";

/**
 * Resize and crop.
 *
 * @param {{data: Uint8Array, width: number, height: number, channels: 1 | 3}} picture
 * @param {{input_size: number[], crop_pct: number, crop_mode: "squash" | "center", interpolation: string}} how
 * @returns {{data: Uint8Array, width: number, height: number, channels: 1 | 3}} What the model sees: a square.
 */
export function fit(picture, how) {
  const side = how.input_size[1];
  const scaled = Math.floor(side / how.crop_pct);
  let width = scaled;
  let height = scaled;
  if (how.crop_mode === "center") {
    // the short side becomes `scaled`, the long one keeps the ratio, cut down to a whole number
    if (picture.width <= picture.height) height = Math.trunc((scaled * picture.height) / picture.width);
    else width = Math.trunc((scaled * picture.width) / picture.height);
  }
  return crop(resize(picture, width, height, how.interpolation), side);
}

/**
 * Normalise pixels in single precision, in the order of torchvision.
 *
 * @param {{data: Uint8Array, channels: 1 | 3}} square
 * @param {{mean: number[], std: number[]}} how
 * @returns {Float32Array} (3, side, side); a grey picture three times.
 */
export function normalise(square, how) {
  const size = square.data.length / square.channels;
  const tensor = new Float32Array(3 * size);
  for (let c = 0; c < 3; c++) {
    const table = Float32Array.from({ length: 256 }, (_, level) => normalised(level, how.mean[c], how.std[c]));
    const offset = square.channels === 1 ? 0 : c;
    for (let i = 0; i < size; i++) tensor[c * size + i] = table[square.data[i * square.channels + offset]];
  }
  return tensor;
}

function normalised(level, mean, std) {
  return Math.fround(Math.fround(level / 255) - Math.fround(mean)) / Math.fround(std);
}

function crop(picture, side) {
  const { data, width, height, channels } = picture;
  if (width === side && height === side) return picture;
  const left = roundHalfEven((width - side) / 2);
  const top = roundHalfEven((height - side) / 2);
  const square = new Uint8Array(side * side * channels);
  for (let y = 0; y < side; y++) {
    const from = ((top + y) * width + left) * channels;
    square.set(data.subarray(from, from + side * channels), y * side * channels);
  }
  return { data: square, width: side, height: side, channels };
}
