/** Canvases: the square that the model sees, and the overlay on it. */

const FOR = [240, 120, 20];
const AGAINST = [40, 130, 230];
const LEAST_SCALE = 0.5; // log-odds that take the full colour at least, so that noise stays pale

/**
 * Draw what the model sees.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {{data: Uint8Array, width: number, height: number, channels: 1 | 3}} square
 */
export function paintSquare(canvas, { data, width, height, channels }) {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = data[i * channels + (channels === 1 ? 0 : c)];
    image.data[4 * i + 3] = 255;
  }
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/**
 * Draw evidence as colour: orange speaks for the class, blue against it, the stronger the less transparent.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {{grid: number, evidence: number[]}} map
 */
export function paintOverlay(canvas, { grid, evidence }) {
  const scale = Math.max(LEAST_SCALE, ...evidence.map(Math.abs));
  const side = 384;
  const image = new ImageData(side, side);
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      const value = between(evidence, grid, ((x + 0.5) / side) * grid - 0.5, ((y + 0.5) / side) * grid - 0.5) / scale;
      image.data.set([...(value > 0 ? FOR : AGAINST), Math.round(255 * Math.min(1, Math.abs(value)))], 4 * (y * side + x));
    }
  }
  canvas.width = side;
  canvas.height = side;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Bilinear: colours of a canvas scaled by the browser would blend through transparent black. */
function between(values, grid, x, y) {
  const [left, top] = [x, y].map((position) => Math.min(Math.max(Math.floor(position), 0), grid - 2));
  const [right, down] = [x - left, y - top].map((share) => Math.min(Math.max(share, 0), 1));
  const at = (column, row) => values[row * grid + column];
  const upper = at(left, top) * (1 - right) + at(left + 1, top) * right;
  const lower = at(left, top + 1) * (1 - right) + at(left + 1, top + 1) * right;
  return upper * (1 - down) + lower * down;
}
