/** Single-frame, uncompressed DICOM as intensities; the parser is dicom-parser, the pixels are read here. */

import { Refusal, checkSides } from "./refusal.js";

const IMPLICIT = "1.2.840.10008.1.2";
const EXPLICIT = "1.2.840.10008.1.2.1";
const BIG_ENDIAN = "1.2.840.10008.1.2.2";

const TAGS = {
  samples: "x00280002",
  colour: "x00280004",
  planar: "x00280006",
  frames: "x00280008",
  rows: "x00280010",
  columns: "x00280011",
  allocated: "x00280100",
  stored: "x00280101",
  signed: "x00280103",
  padding: "x00280120",
  paddingLimit: "x00280121",
  intercept: "x00281052",
  slope: "x00281053",
  table: "x00283000",
  pixels: "x7fe00010",
};

let parser;

/** Load the library unchanged: it asks for an AMD loader where there is neither CommonJS nor a global object. */
async function loadParser() {
  if (parser) return parser;
  globalThis.define = Object.assign((_name, _needs, factory) => (parser = factory(undefined)), { amd: true });
  try {
    await import("../dicom-parser/dicomParser.min.js");
  } finally {
    delete globalThis.define;
  }
  return parser;
}

/**
 * Read one slice as hf_kdmri.data.dicom does: rescaled, padding darkened, MONOCHROME1 inverted, the file's own display
 * windows left alone.
 *
 * @param {Uint8Array} bytes - With preamble.
 * @returns {Promise<{values: Float64Array | Uint8Array, width: number, height: number, channels: 1 | 3}>} Uint8Array
 *   only where the file holds plain 8-bit pixels, which are not windowed.
 * @throws {Refusal} Compressed, several frames, other colours than grey or 8-bit RGB, no pixels, or damaged.
 */
export async function readDicom(bytes) {
  const library = await loadParser();
  let dataset;
  try {
    const syntax = library.readPart10Header(bytes).string("x00020010");
    if (![IMPLICIT, EXPLICIT, BIG_ENDIAN].includes(syntax)) {
      throw new Refusal(
        `This DICOM file is compressed (transfer syntax ${syntax ?? "not named"}). Save it uncompressed first, for ` +
          "instance with gdcmconv --raw in.dcm out.dcm.",
      );
    }
    dataset = library.parseDicom(bytes);
    dataset.bigEndian = syntax === BIG_ENDIAN;
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal("This DICOM file is damaged or cut off; export it again."); // the parser's own words may quote it
  }
  return readPixels(dataset, bytes, readHeader(dataset));
}

function readHeader(dataset) {
  const number = (tag) => dataset.uint16(tag);
  const frames = dataset.elements[TAGS.frames] ? dataset.intString(TAGS.frames) : 1;
  if (!dataset.elements[TAGS.pixels]) throw new Refusal("This DICOM file has no picture in it (a report, a plan, a directory).");
  if (frames !== 1) throw new Refusal(`This DICOM file holds ${frames} frames; give a single slice.`);
  const missing = ["rows", "columns", "samples", "allocated", "stored", "signed"].filter((name) => number(TAGS[name]) === undefined);
  if (missing.length > 0 || number(TAGS.signed) > 1) {
    throw new Refusal("This DICOM file does not say how its pixels are stored; it is damaged, export it again.");
  }
  const header = {
    width: number(TAGS.columns),
    height: number(TAGS.rows),
    allocated: number(TAGS.allocated),
    samples: number(TAGS.samples),
    colour: dataset.string(TAGS.colour),
    planar: number(TAGS.planar) === 1,
    signed: number(TAGS.signed) === 1,
    slope: decimal(dataset, TAGS.slope, 1),
    intercept: decimal(dataset, TAGS.intercept, 0),
    stored: number(TAGS.stored),
  };
  checkSides(header.width, header.height);
  if (dataset.elements[TAGS.table]) {
    throw new Refusal("This DICOM file maps its pixels through a table (Modality LUT Sequence), which this page does not read.");
  }
  const grey = ["MONOCHROME1", "MONOCHROME2"].includes(header.colour) && header.samples === 1;
  const rgb = header.colour === "RGB" && header.samples === 3 && header.allocated === 8;
  if (!grey && !rgb) {
    throw new Refusal(
      `This DICOM file is ${header.colour} with ${header.samples} samples of ${header.allocated} bits; ` +
        "expected MONOCHROME1, MONOCHROME2 or 8-bit RGB.",
    );
  }
  if (![8, 16, 32].includes(header.allocated) || !(header.stored >= 1 && header.stored <= header.allocated)) {
    throw new Refusal(`This DICOM file has pixels of ${header.stored} in ${header.allocated} bits, which this page does not read.`);
  }
  return header;
}

function decimal(dataset, tag, otherwise) {
  const value = dataset.elements[tag] ? dataset.floatString(tag) : undefined;
  return Number.isFinite(value) ? value : otherwise;
}

function readPixels(dataset, bytes, header) {
  const { width, height, samples, allocated } = header;
  const { dataOffset, length } = dataset.elements[TAGS.pixels];
  const count = width * height * samples;
  if (length < (count * allocated) / 8 || dataOffset + (count * allocated) / 8 > bytes.length) {
    throw new Refusal("This DICOM file ends before its last pixel; export it again.");
  }
  const size = { width, height, channels: samples };
  if (samples === 3) return { values: interleaved(bytes.subarray(dataOffset, dataOffset + count), header), ...size };

  const stored = storedValues(dataset, bytes, header, dataOffset, count);
  const isPadding = paddingTest(dataset, header);
  let smallest = Infinity;
  let largest = -Infinity;
  let padded = false;
  for (const value of stored) {
    if (isPadding(value)) {
      padded = true;
    } else {
      smallest = Math.min(smallest, value);
      largest = Math.max(largest, value);
    }
  }
  if (smallest === Infinity) throw new Refusal("This DICOM file holds nothing but padding.");
  const { slope, intercept } = header;
  const inverted = header.colour === "MONOCHROME1";
  const plain = slope === 1 && intercept === 0;
  if (allocated === 8 && header.stored === 8 && !header.signed && plain && !padded) {
    return { values: Uint8Array.from(stored, (value) => (inverted ? 255 - value : value)), ...size };
  }
  const rescaled = (value) => (plain ? value : value * slope + intercept);
  const ends = rescaled(smallest) + rescaled(largest);
  const final = (value) => (inverted ? ends - rescaled(value) : rescaled(value));
  const dark = Math.min(final(smallest), final(largest));
  return { values: stored.map((value) => (isPadding(value) ? dark : final(value))), ...size };
}

/** Stored numbers, their unused high bits cut off and their sign extended. */
function storedValues(dataset, bytes, { allocated, stored, signed }, offset, count) {
  const view = new DataView(bytes.buffer, bytes.byteOffset + offset);
  const little = !dataset.bigEndian;
  const read = {
    8: (i) => view.getUint8(i),
    16: (i) => view.getUint16(2 * i, little),
    32: (i) => view.getUint32(4 * i, little),
  }[allocated];
  const range = 2 ** stored;
  const values = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    const value = read(i) % range;
    values[i] = signed && value >= range / 2 ? value - range : value;
  }
  return values;
}

function interleaved(data, { planar, width, height }) {
  if (!planar) return data.slice();
  const size = width * height;
  const out = new Uint8Array(3 * size);
  for (let i = 0; i < size; i++) for (let c = 0; c < 3; c++) out[3 * i + c] = data[c * size + i];
  return out;
}

function paddingTest(dataset, { signed }) {
  const read = (tag) => (signed ? dataset.int16(tag) : dataset.uint16(tag));
  if (!dataset.elements[TAGS.padding]) return () => false;
  const value = read(TAGS.padding);
  const limit = dataset.elements[TAGS.paddingLimit] ? read(TAGS.paddingLimit) : value;
  const [low, high] = [Math.min(value, limit), Math.max(value, limit)];
  return (stored) => stored >= low && stored <= high;
}
