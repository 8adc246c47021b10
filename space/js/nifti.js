/** NIfTI-1 and NIfTI-2 volumes, plain or gzipped, cut into slices as a radiologist looks at them. */

import { inflate } from "./inflate.js";
import { Refusal, checkSides } from "./refusal.js";

const MAX_VOLUME_BYTES = 256 * 2 ** 20;
const HEADER_BYTES = 540;
const TYPES = {
  2: [1, "getUint8"],
  4: [2, "getInt16"],
  8: [4, "getInt32"],
  16: [4, "getFloat32"],
  64: [8, "getFloat64"],
  256: [1, "getInt8"],
  512: [2, "getUint16"],
  768: [4, "getUint32"],
};
// World axes are 0 right, 1 anterior, 2 superior. Each plane: the axis it is cut along, of its columns, of its rows;
// columns run from the patient's right to the left, or from front to back, rows from front or top down.
const PLANES = { axial: [2, 0, 1], coronal: [1, 0, 2], sagittal: [0, 1, 2] };

/**
 * @typedef {object} Volume
 * @property {Record<"axial" | "coronal" | "sagittal", number>} counts - Slices of each plane.
 * @property {string[]} notes
 * @property {(plane: string, index: number) => {values: Float64Array, width: number, height: number}} slice - Counted
 *   from below, from behind, from the patient's left.
 */

/**
 * Read a volume.
 *
 * @param {Uint8Array} bytes - The file, gzipped or not.
 * @returns {Promise<{volume: Volume}>}
 * @throws {Refusal} Several volumes, colours or complex numbers, too large, damaged, or gzip around something else.
 */
export async function readNifti(bytes) {
  const packed = bytes[0] === 0x1f && bytes[1] === 0x8b;
  const head = packed ? await inflate([bytes], "gzip", HEADER_BYTES) : bytes.slice(0, HEADER_BYTES);
  const header = readHeader(head);
  const [bytesPerVoxel, getter] = TYPES[header.type] ?? [];
  if (!bytesPerVoxel) throw new Refusal(`This NIfTI volume has voxels of type ${header.type}; expected plain numbers.`);
  const [nx, ny, nz] = header.sides;
  const end = header.offset + nx * ny * nz * bytesPerVoxel;
  if (!(header.offset >= 0)) throw new Refusal("This NIfTI volume is damaged: its voxels begin nowhere.");
  if (!(end <= MAX_VOLUME_BYTES)) throw new Refusal(`This NIfTI volume is larger than ${MAX_VOLUME_BYTES / 2 ** 20} MB; cut it first.`);
  const whole = packed ? await inflate([bytes], "gzip", end) : bytes;
  if (whole.length < end) throw new Refusal("This NIfTI volume ends before its last voxel; save it again.");
  const view = new DataView(whole.buffer, whole.byteOffset + header.offset);

  const axes = axesOf(header.affine);
  const strides = [1, nx, nx * ny];
  // for each world axis the voxel axis that runs along it, and whether it runs against it
  const along = [0, 1, 2].map((world) => {
    const voxel = axes.findIndex((axis) => axis.world === world);
    return { stride: strides[voxel], size: header.sides[voxel], spacing: header.spacing[voxel], against: axes[voxel].against };
  });
  const place = ({ stride, size, against }, index) => (against ? size - 1 - index : index) * stride;
  const slice = (plane, index) => {
    const [cut, columns, rows] = PLANES[plane].map((world) => along[world]);
    checkSides(columns.size, rows.size);
    const values = new Float64Array(columns.size * rows.size);
    const start = place(cut, index);
    for (let row = 0, to = 0; row < rows.size; row++) {
      const line = start + place(rows, rows.size - 1 - row);
      for (let column = 0; column < columns.size; column++) {
        const voxel = line + place(columns, columns.size - 1 - column);
        values[to++] = view[getter](voxel * bytesPerVoxel, header.little) * header.slope + header.intercept;
      }
    }
    return { values, width: columns.size, height: rows.size };
  };
  const counts = Object.fromEntries(Object.entries(PLANES).map(([plane, [cut]]) => [plane, along[cut].size]));
  const notes = header.affine ? [] : ["The volume does not say how it lies; right, front and top were guessed."];
  return { volume: { counts, notes, slice } };
}

function readHeader(bytes) {
  if (bytes.length < 348) throw new Refusal("This gzip file is no NIfTI volume; unpack it and give what is inside.");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const little = [348, 540].includes(view.getInt32(0, true));
  const version = { 348: 1, 540: 2 }[view.getInt32(0, little)];
  if (!version || bytes.length < (version === 2 ? 540 : 348)) {
    throw new Refusal("This gzip file is no NIfTI volume; unpack it and give what is inside.");
  }
  const header = version === 1 ? fields1(view, little) : fields2(view, little);
  const [count, ...dims] = header.dims;
  if (!(count >= 2 && count <= 7)) throw new Refusal("This NIfTI volume is damaged: it has no number of dimensions.");
  const sides = [0, 1, 2].map((axis) => (axis < count ? dims[axis] : 1));
  if (dims.slice(3, count).some((size) => size > 1)) throw new Refusal("This NIfTI file holds several volumes; save one of them.");
  if (!sides.every((side) => side > 0)) throw new Refusal("This NIfTI volume is damaged: a side has no voxels.");
  if (!(header.slope !== 0 && Number.isFinite(header.slope))) Object.assign(header, { slope: 1, intercept: 0 });
  return { ...header, sides, little };
}

function fields1(view, little) {
  const real = (at) => view.getFloat32(at, little);
  const short = (at) => view.getInt16(at, little);
  const reals = (at, count) => Array.from({ length: count }, (_, i) => real(at + 4 * i));
  return {
    dims: Array.from({ length: 8 }, (_, i) => short(40 + 2 * i)),
    type: short(70),
    spacing: reals(80, 3),
    offset: real(108),
    slope: real(112),
    intercept: real(116),
    affine: affineOf(short(252), short(254), real(76), reals(80, 3), reals(256, 3), [0, 1, 2].map((row) => reals(280 + 16 * row, 3))),
  };
}

function fields2(view, little) {
  const real = (at) => view.getFloat64(at, little);
  const reals = (at, count) => Array.from({ length: count }, (_, i) => real(at + 8 * i));
  const long = (at) => Number(view.getBigInt64(at, little));
  const codes = [view.getInt32(344, little), view.getInt32(348, little)];
  return {
    dims: Array.from({ length: 8 }, (_, i) => long(16 + 8 * i)),
    type: view.getInt16(12, little),
    spacing: reals(112, 3),
    offset: long(168),
    slope: real(176),
    intercept: real(184),
    affine: affineOf(...codes, real(104), reals(112, 3), reals(352, 3), [0, 1, 2].map((row) => reals(400 + 32 * row, 3))),
  };
}

/** Voxel axes in the world, 3 × 3 without the origin; null where the file does not say. */
function affineOf(qformCode, sformCode, handedness, spacing, [b, c, d], sform) {
  if (sformCode > 0) return sform;
  if (qformCode <= 0) return null;
  const a = Math.sqrt(Math.max(0, 1 - b * b - c * c - d * d));
  const rotation = [
    [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
    [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
    [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
  ];
  const scale = [spacing[0], spacing[1], spacing[2] * (handedness < 0 ? -1 : 1)];
  return rotation.map((row) => row.map((value, axis) => value * scale[axis]));
}

/** For each voxel axis the world axis nearest to it, each world axis once. */
function axesOf(affine) {
  if (!affine) return [0, 1, 2].map((world) => ({ world, against: false }));
  const lengths = [0, 1, 2].map((axis) => Math.hypot(...affine.map((row) => row[axis])) || 1);
  const fits = [0, 1, 2].flatMap((voxel) =>
    [0, 1, 2].map((world) => ({ voxel, world, cosine: affine[world][voxel] / lengths[voxel] })),
  );
  fits.sort((one, other) => Math.abs(other.cosine) - Math.abs(one.cosine));
  const axes = [];
  for (const { voxel, world, cosine } of fits) {
    if (axes[voxel] || axes.some((axis) => axis?.world === world)) continue;
    axes[voxel] = { world, against: cosine < 0 };
  }
  return axes;
}
