/** Resizing of 8-bit pictures, bit for bit as Pillow 13 does it: antialiased, in fixed point, one side after the other. */

const FRACTION_BITS = 22; // Pillow's: 32 bits less 8 of a pixel and 2 for overshoot

const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: {
    support: 2,
    weight: (signed) => {
      const a = -0.5;
      const x = Math.abs(signed);
      if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
      return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
    },
  },
};

export const INTERPOLATIONS = Object.keys(FILTERS);

/**
 * Resize to new sides; the aspect ratio is the caller's business.
 *
 * @param {{data: Uint8Array, width: number, height: number, channels: number}} picture - Interleaved.
 * @param {number} width
 * @param {number} height
 * @param {string} interpolation - One of `INTERPOLATIONS`.
 */
export function resize(picture, width, height, interpolation) {
  const filter = FILTERS[interpolation];
  // The order matters, since between the passes pixels are rounded and clipped to 8 bits. Pillow shrinks a height that
  // is to lose more than twice as many pixels as the width first; before version 13 the width always came first.
  const rowsFirst = height < picture.height && picture.height - height > 2 * (picture.width - width);
  if (rowsFirst) return resizeWidth(resizeHeight(picture, height, filter), width, filter);
  return resizeHeight(resizeWidth(picture, width, filter), height, filter);
}

function resizeWidth(picture, width, filter) {
  if (width === picture.width) return picture;
  const { data, height, channels } = picture;
  const taps = tapsOf(picture.width, width, filter);
  const resized = new Uint8Array(width * height * channels);
  for (let y = 0, to = 0; y < height; y++) {
    const from = y * picture.width * channels;
    for (let x = 0; x < width; x++) {
      const first = from + taps.first[x] * channels;
      for (let c = 0; c < channels; c++) resized[to++] = weigh(data, first + c, channels, taps, x);
    }
  }
  return { ...picture, data: resized, width };
}

function resizeHeight(picture, height, filter) {
  if (height === picture.height) return picture;
  const { data, width, channels } = picture;
  const taps = tapsOf(picture.height, height, filter);
  const row = width * channels;
  const resized = new Uint8Array(row * height);
  for (let y = 0, to = 0; y < height; y++) {
    for (let i = 0; i < row; i++) resized[to++] = weigh(data, taps.first[y] * row + i, row, taps, y);
  }
  return { ...picture, data: resized, height };
}

/** For every output pixel the first input pixel, their number, and their weights in fixed point. */
function tapsOf(inSize, outSize, filter) {
  const scale = inSize / outSize;
  const stretch = Math.max(scale, 1); // shrinking widens the filter: that is the antialiasing
  const support = filter.support * stretch;
  const most = Math.ceil(support) * 2 + 1;
  const taps = {
    most,
    first: new Int32Array(outSize),
    count: new Int32Array(outSize),
    weights: new Int32Array(outSize * most),
  };
  for (let out = 0; out < outSize; out++) {
    const centre = (out + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const count = Math.min(inSize, Math.trunc(centre + support + 0.5)) - first;
    const weights = Array.from({ length: count }, (_, i) => filter.weight((i + first - centre + 0.5) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    taps.first[out] = first;
    taps.count[out] = count;
    weights.forEach((weight, i) => {
      const fixed = (weight / sum) * 2 ** FRACTION_BITS;
      taps.weights[out * most + i] = Math.trunc(fixed + (fixed < 0 ? -0.5 : 0.5));
    });
  }
  return taps;
}

function weigh(data, start, step, taps, out) {
  const offset = out * taps.most;
  let sum = 1 << (FRACTION_BITS - 1);
  for (let i = 0, at = start; i < taps.count[out]; i++, at += step) sum += data[at] * taps.weights[offset + i];
  const level = sum >> FRACTION_BITS;
  return level < 0 ? 0 : level > 255 ? 255 : level;
}
