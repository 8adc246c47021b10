/** PNG without loss: all bit depths, palettes, interlacing. A browser's canvas would cut 16 bits down to 8. */

import { inflate } from "./inflate.js";
import { orientationOf } from "./orientation.js";
import { Refusal, checkSides } from "./refusal.js";

const SAMPLES = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // colour type to samples per pixel
const DEPTHS = { 0: [1, 2, 4, 8, 16], 2: [8, 16], 3: [1, 2, 4, 8], 4: [8, 16], 6: [8, 16] };
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2]];
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  for (let bit = 0; bit < 8; bit++) byte = byte & 1 ? 0xedb88320 ^ (byte >>> 1) : byte >>> 1;
  return byte;
});

/**
 * Decode a PNG.
 *
 * Palettes are resolved and alpha is dropped, as Python does it. Grey of 16 bits keeps them; colour of 16 bits keeps
 * its upper 8, which is a fixed scale and saturates nothing.
 *
 * @param {Uint8Array} bytes
 * @returns {Promise<{data: Uint8Array | Uint16Array, width: number, height: number, channels: 1 | 3,
 *   orientation: number, depth: number}>}
 * @throws {Refusal} Damaged, animated, or too large.
 */
export async function decodePng(bytes) {
  const { header, palette, packed, orientation } = readChunks(bytes);
  const { width, height, depth, colour, interlaced } = header;
  const samples = SAMPLES[colour];
  const passes = interlaced ? PASSES : [[0, 0, 1, 1]];
  const sizes = passes.map(([x, y, stepX, stepY]) => [Math.ceil((width - x) / stepX), Math.ceil((height - y) / stepY)]);
  const lineBytes = (columns) => Math.ceil((columns * samples * depth) / 8);
  const expected = sizes.reduce((sum, [w, h]) => sum + (w > 0 && h > 0 ? h * (1 + lineBytes(w)) : 0), 0);
  const raw = await inflate(packed, "deflate", expected);
  if (raw.length < expected) throw new Refusal("The PNG ends before its last line; save it again.");

  const channels = colour === 2 || colour === 6 || colour === 3 ? 3 : 1;
  const wide = depth === 16 && colour === 0;
  const data = new (wide ? Uint16Array : Uint8Array)(width * height * channels);
  const write = lineWriter(data, { depth, colour, samples, channels, palette });
  let at = 0;
  passes.forEach(([x0, y0, stepX, stepY], pass) => {
    const [columns, lines] = sizes[pass];
    if (columns <= 0 || lines <= 0) return;
    const stride = lineBytes(columns);
    const step = Math.max(1, (samples * depth) >> 3);
    let above = new Uint8Array(stride);
    for (let line = 0; line < lines; line++) {
      const filter = raw[at];
      const current = raw.subarray(at + 1, at + 1 + stride);
      unfilter(filter, current, above, step);
      write(current, columns, (y0 + line * stepY) * width + x0, stepX);
      above = current;
      at += 1 + stride;
    }
  });
  return { data, width, height, channels, orientation, depth };
}

function readChunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let header = null;
  let palette = null;
  let orientation = 1;
  const packed = [];
  for (let at = 8; at + 12 <= bytes.length; ) {
    const length = view.getUint32(at);
    const type = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const body = bytes.subarray(at + 8, at + 8 + length);
    if (at + 12 + length > bytes.length || type === "IEND") break;
    if (crc32(bytes.subarray(at + 4, at + 8 + length)) !== view.getUint32(at + 8 + length)) {
      throw new Refusal(`The PNG is damaged (the checksum of its part ${type} is wrong); save it again.`);
    }
    if (type === "IHDR" && length === 13) header = readHeader(body);
    else if (type === "PLTE") palette = body;
    else if (type === "IDAT") packed.push(body);
    else if (type === "eXIf") orientation = orientationOf(body);
    else if (type === "acTL") throw new Refusal("This PNG is animated; save one frame as a picture of its own.");
    at += 12 + length;
  }
  if (!header || packed.length === 0 || (header.colour === 3 && !palette)) {
    throw new Refusal("The PNG is damaged or cut off; save it again.");
  }
  return { header, palette, packed, orientation };
}

/** CRC-32 of ISO 3309, as PNG has it. */
function crc32(bytes) {
  let crc = ~0;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

function readHeader(body) {
  const view = new DataView(body.buffer, body.byteOffset, body.byteLength);
  const [width, height, depth, colour] = [view.getUint32(0), view.getUint32(4), body[8], body[9]];
  if (!DEPTHS[colour]?.includes(depth)) throw new Refusal(`The PNG's colour type ${colour} with ${depth} bits does not exist.`);
  checkSides(width, height);
  return { width, height, depth, colour, interlaced: body[12] === 1 };
}

/** Return what writes a line's pixels to every `step`th place of the picture from place `to` on. */
function lineWriter(data, { depth, colour, samples, channels, palette }) {
  if (colour === 3) {
    return (line, columns, to, step) => {
      for (let column = 0; column < columns; column++, to += step) {
        const index = 3 * sampleOf(line, column, depth);
        for (let c = 0; c < 3; c++) data[3 * to + c] = palette[index + c] ?? 0;
      }
    };
  }
  if (depth < 8) {
    const scale = 255 / (2 ** depth - 1);
    return (line, columns, to, step) => {
      for (let column = 0; column < columns; column++, to += step) data[to] = sampleOf(line, column, depth) * scale;
    };
  }
  if (data instanceof Uint16Array) {
    return (line, columns, to, step) => {
      for (let i = 0; i < 2 * columns; i += 2, to += step) data[to] = (line[i] << 8) | line[i + 1];
    };
  }
  const width = depth >> 3;
  return (line, columns, to, step) => {
    for (let column = 0; column < columns; column++, to += step) {
      for (let c = 0; c < channels; c++) data[channels * to + c] = line[(column * samples + c) * width];
    }
  };
}

function sampleOf(line, column, depth) {
  if (depth === 8) return line[column];
  const bit = column * depth;
  return (line[bit >> 3] >> (8 - depth - (bit & 7))) & (2 ** depth - 1);
}

/** Undo a line's prediction in place; `above` is the line before, zeros for the first. */
function unfilter(filter, line, above, step) {
  const length = line.length;
  if (filter === 1) {
    for (let i = step; i < length; i++) line[i] += line[i - step];
  } else if (filter === 2) {
    for (let i = 0; i < length; i++) line[i] += above[i];
  } else if (filter === 3) {
    for (let i = 0; i < length; i++) line[i] += ((i >= step ? line[i - step] : 0) + above[i]) >> 1;
  } else if (filter === 4) {
    for (let i = 0; i < length; i++) {
      line[i] += i >= step ? paeth(line[i - step], above[i], above[i - step]) : above[i];
    }
  } else if (filter !== 0) {
    throw new Refusal(`The PNG has a line filter ${filter}, which does not exist; it is damaged.`);
  }
}

function paeth(left, up, corner) {
  const estimate = left + up - corner;
  const [toLeft, toUp, toCorner] = [Math.abs(estimate - left), Math.abs(estimate - up), Math.abs(estimate - corner)];
  if (toLeft <= toUp && toLeft <= toCorner) return left;
  return toUp <= toCorner ? up : corner;
}
