/** What kind of file this is, by its first bytes and never by its name; size and frames from the header alone. */

import { Refusal } from "./refusal.js";

const FOREIGN = [
  ["II*\0", 0, "a TIFF picture, which browsers do not read"],
  ["MM\0*", 0, "a TIFF picture, which browsers do not read"],
  ["%PDF", 0, "a PDF document"],
  ["PK\x03\x04", 0, "a zip archive"],
  ["\x89HDF", 0, "an HDF5 file"],
  ["MATLAB", 0, "a MATLAB file"],
  ["ftyp", 4, "a HEIC, AVIF or video file"],
  ["NRRD", 0, "an NRRD volume"],
  ["<svg", 0, "an SVG drawing"],
  ["<?xml", 0, "an XML file"],
];

/**
 * Name the kind of a file.
 *
 * @param {Uint8Array} bytes - The whole file.
 * @returns {"png" | "jpeg" | "gif" | "webp" | "bmp" | "dicom" | "nifti" | "gzip"}
 * @throws {Refusal} Anything else, named where it is known.
 */
export function kindOf(bytes) {
  if (bytes.length === 0) throw new Refusal("The file is empty.");
  if (starts(bytes, "\x89PNG\r\n\x1a\n")) return "png";
  if (starts(bytes, "\xff\xd8\xff")) return "jpeg";
  if (starts(bytes, "GIF87a") || starts(bytes, "GIF89a")) return "gif";
  if (starts(bytes, "RIFF") && starts(bytes, "WEBP", 8)) return "webp";
  if (starts(bytes, "BM")) return "bmp";
  if (starts(bytes, "DICM", 128)) return "dicom";
  if (["n+1\0", "n+2\0"].some((magic) => starts(bytes, magic, 344) || starts(bytes, magic, 4))) return "nifti";
  if (starts(bytes, "\x1f\x8b")) return "gzip";
  const foreign = FOREIGN.find(([magic, at]) => starts(bytes, magic, at));
  const what = foreign ? `This is ${foreign[2]}.` : "This is no picture that the page knows.";
  throw new Refusal(`${what} Give a PNG, JPEG, WebP, GIF or BMP picture, a single-frame DICOM file or a NIfTI volume.`);
}

/**
 * Read width, height and number of frames of a picture that the browser will decode, so that it need not try in vain.
 *
 * @param {Uint8Array} bytes
 * @param {"jpeg" | "gif" | "webp" | "bmp"} kind
 * @returns {{width: number, height: number, animated: boolean}}
 * @throws {Refusal} The header is cut off.
 */
export function measure(bytes, kind) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    return { jpeg: measureJpeg, gif: measureGif, webp: measureWebp, bmp: measureBmp }[kind](view, bytes);
  } catch (error) {
    if (error instanceof RangeError) throw new Refusal("The picture is cut off in its header; save it again.");
    throw error;
  }
}

function measureJpeg(view) {
  for (let at = 2; ; ) {
    if (view.getUint8(at) !== 0xff) throw new RangeError("no marker");
    const marker = view.getUint8(at + 1);
    if (marker === 0xff) {
      at += 1; // fill byte
    } else if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      return { height: view.getUint16(at + 5), width: view.getUint16(at + 7), animated: false };
    } else {
      at += 2 + view.getUint16(at + 2);
    }
  }
}

function measureGif(view) {
  const size = { width: view.getUint16(6, true), height: view.getUint16(8, true) };
  const table = (flags) => (flags & 0x80 ? 3 * 2 ** ((flags & 7) + 1) : 0);
  let frames = 0;
  let at = 13 + table(view.getUint8(10));
  const skipBlocks = () => {
    while (view.getUint8(at)) at += view.getUint8(at) + 1;
    at += 1;
  };
  while (at < view.byteLength && view.getUint8(at) !== 0x3b && frames < 2) {
    if (view.getUint8(at) === 0x2c) {
      frames += 1;
      at += 11 + table(view.getUint8(at + 9));
    } else {
      at += 2;
    }
    skipBlocks();
  }
  return { ...size, animated: frames > 1 };
}

function measureWebp(view, bytes) {
  const uint24 = (at) => view.getUint16(at, true) | (view.getUint8(at + 2) << 16);
  if (starts(bytes, "VP8X", 12)) {
    return { width: uint24(24) + 1, height: uint24(27) + 1, animated: Boolean(view.getUint8(20) & 2) };
  }
  if (starts(bytes, "VP8L", 12)) {
    const bits = view.getUint32(21, true);
    return { width: (bits & 0x3fff) + 1, height: ((bits >> 14) & 0x3fff) + 1, animated: false };
  }
  return { width: view.getUint16(26, true) & 0x3fff, height: view.getUint16(28, true) & 0x3fff, animated: false };
}

function measureBmp(view) {
  if (view.getUint32(14, true) === 12) {
    return { width: view.getUint16(18, true), height: view.getUint16(20, true), animated: false };
  }
  return { width: view.getInt32(18, true), height: Math.abs(view.getInt32(22, true)), animated: false };
}

function starts(bytes, text, at = 0) {
  return bytes.length >= at + text.length && [...text].every((letter, i) => bytes[at + i] === letter.charCodeAt(0));
}
