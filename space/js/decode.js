/** A file's bytes to an upright 8-bit picture, whatever its kind. */

import { decodeInBrowser } from "./browser_picture.js";
import { readDicom } from "./dicom.js";
import { readNifti } from "./nifti.js";
import { turnUpright } from "./orientation.js";
import { decodePng } from "./png.js";
import { Refusal } from "./refusal.js";
import { kindOf } from "./sniff.js";
import { windowTo8Bit } from "./window.js";

/**
 * @typedef {object} Picture
 * @property {Uint8Array} data - Interleaved, row by row from the top.
 * @property {number} width
 * @property {number} height
 * @property {1 | 3} channels - Grey, or red, green, blue.
 * @property {string} format - For people, for instance "PNG, 16 bits".
 * @property {string[]} notes - What was done to it that may surprise.
 */

/**
 * Open a file.
 *
 * @param {Uint8Array} bytes
 * @returns {Promise<{picture: Picture} | {volume: import("./nifti.js").Volume}>} A volume still needs a choice of slice.
 * @throws {Refusal} With the reason.
 */
export async function openFile(bytes) {
  const kind = kindOf(bytes);
  if (kind === "nifti" || kind === "gzip") return readNifti(bytes);
  if (kind === "png") return { picture: await openPng(bytes) };
  if (kind === "dicom") return { picture: await openDicom(bytes) };
  const { transparent, ...picture } = await decodeInBrowser(bytes, kind);
  const notes = transparent ? ["Its transparent parts were read as black."] : [];
  return { picture: { ...picture, format: { jpeg: "JPEG", webp: "WebP" }[kind] ?? kind.toUpperCase(), notes } };
}

/**
 * Window raw intensities and say so.
 *
 * @param {{values: ArrayLike<number>, width: number, height: number}} slice
 * @param {string} format
 * @returns {Picture}
 */
export function windowed({ values, width, height }, format) {
  const { data, low, high } = windowTo8Bit(values);
  const ends = [low, high].map((value) => value.toLocaleString("en", { maximumFractionDigits: 1 }));
  const note = `Intensities from ${ends[0]} to ${ends[1]} (percentiles 0.1 and 99.9) became black to white.`;
  return { data, width, height, channels: 1, format, notes: [note] };
}

async function openPng(bytes) {
  const { orientation, depth, ...stored } = await decodePng(bytes);
  const { data, width, height, channels } = turnUpright(stored, orientation);
  const format = depth === 8 ? "PNG" : `PNG, ${depth} bit${depth === 1 ? "" : "s"}`;
  if (data instanceof Uint16Array) return windowed({ values: data, width, height }, format);
  return { ...reduceGrey({ data, width, height, channels }), format, notes: [] };
}

async function openDicom(bytes) {
  const { values, width, height, channels } = await readDicom(bytes);
  if (values instanceof Uint8Array) return { ...reduceGrey({ data: values, width, height, channels }), format: "DICOM", notes: [] };
  return windowed({ values, width, height }, "DICOM");
}

/** Keep one channel where all three are equal: a third of the work, the same result. */
function reduceGrey(picture) {
  const { data, channels } = picture;
  if (channels === 1) return picture;
  for (let i = 0; i < data.length; i += 3) if (data[i] !== data[i + 1] || data[i] !== data[i + 2]) return picture;
  const grey = new Uint8Array(data.length / 3);
  for (let i = 0; i < grey.length; i++) grey[i] = data[3 * i];
  return { ...picture, data: grey, channels: 1 };
}
