/** Does this look like a greyscale slice at all? Simple statistics of the picture, said as warnings, never hidden. */

const COLOURFUL = 32; // difference of channels, 0–255; JPEG's chroma noise on grey stays below
const COLOURFUL_SHARE = 0.02;
const FEW_LEVELS = 16; // as hf_kdmri.data.pictures warns; of 766 slices of the Figshare set none has so few
const BRIGHT_EDGE = 64; // median of the outermost pixels, 0–255; of 766 slices of the Figshare set none is above 4
const SMALL_SIDE = 64; // pixels
const LONG_RATIO = 1.6;

/**
 * Find what is foreign about a picture.
 *
 * @param {import("./decode.js").Picture} picture
 * @returns {{foreign: string[], doubtful: string[]}} Foreign: it does not look like a slice. Doubtful: it may, but the
 *   model was trained on others.
 */
export function lookAt(picture) {
  const { data, width, height, channels } = picture;
  const foreign = [];
  const doubtful = [];
  if (channels === 3) {
    const share = colourfulShare(data);
    if (share > COLOURFUL_SHARE) foreign.push(`${Math.round(100 * share)} % of its pixels are colourful`);
  }
  const levels = greyLevels(picture);
  if (levels === 1) foreign.push("all its pixels are equal");
  else if (levels < FEW_LEVELS) foreign.push(`it has only ${levels} grey levels`);
  else if (edgeMedian(picture) > BRIGHT_EDGE) foreign.push("its edge is bright, where a slice shows dark air");
  if (Math.min(width, height) < SMALL_SIDE) doubtful.push(`It has only ${width} × ${height} pixels.`);
  if (Math.max(width, height) / Math.min(width, height) > LONG_RATIO) {
    doubtful.push(`It is ${width} × ${height} pixels, far from square.`);
  }
  return { foreign, doubtful };
}

function colourfulShare(data) {
  let colourful = 0;
  for (let i = 0; i < data.length; i += 3) {
    const least = Math.min(data[i], data[i + 1], data[i + 2]);
    if (Math.max(data[i], data[i + 1], data[i + 2]) - least > COLOURFUL) colourful += 1;
  }
  return colourful / (data.length / 3);
}

function greyLevels({ data, channels }) {
  if (channels === 1) return new Set(data).size;
  const seen = new Set();
  for (let i = 0; i < data.length; i += 3) {
    const [red, green, blue] = [data[i], data[i + 1], data[i + 2]];
    seen.add((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16); // Pillow's luminance
  }
  return seen.size;
}

function edgeMedian({ data, width, height, channels }) {
  const edge = [];
  const take = (x, y) => edge.push(data[(y * width + x) * channels]);
  for (let x = 0; x < width; x++) take(x, 0), take(x, height - 1);
  for (let y = 0; y < height; y++) take(0, y), take(width - 1, y);
  return edge.sort((one, other) => one - other)[edge.length >> 1];
}
