/** EXIF orientation: read it from a TIFF header, and turn pixels upright. */

const SHORT = 3; // TIFF's type of a number of 16 bits

/**
 * Find the orientation in a block of EXIF data.
 *
 * @param {Uint8Array} exif - From its TIFF header on.
 * @returns {number} 1 to 8; 1 where there is none or the block is damaged.
 */
export function orientationOf(exif) {
  const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
  try {
    const little = view.getUint16(0) === 0x4949;
    const directory = view.getUint32(4, little);
    for (let entry = 0; entry < view.getUint16(directory, little); entry++) {
      const at = directory + 2 + 12 * entry;
      if (view.getUint16(at, little) !== 0x0112) continue;
      const [type, count, value] = [view.getUint16(at + 2, little), view.getUint32(at + 4, little), view.getUint16(at + 8, little)];
      return type === SHORT && count === 1 && value >= 1 && value <= 8 ? value : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
  }
  return 1;
}

/**
 * Turn and mirror pixels as an orientation asks.
 *
 * @template {Uint8Array | Uint16Array} T
 * @param {{data: T, width: number, height: number, channels: number}} picture
 * @param {number} orientation - 1 to 8.
 */
export function turnUpright(picture, orientation) {
  if (orientation === 1) return picture;
  const { data, width, height, channels } = picture;
  const swapped = orientation >= 5;
  const [newWidth, newHeight] = swapped ? [height, width] : [width, height];
  const mirroredX = [2, 3, 7, 8].includes(orientation);
  const mirroredY = [3, 4, 6, 7].includes(orientation);
  const turned = new data.constructor(data.length);
  let to = 0;
  for (let y = 0; y < newHeight; y++) {
    for (let x = 0; x < newWidth; x++) {
      let [column, row] = swapped ? [y, x] : [x, y];
      if (mirroredX) column = width - 1 - column;
      if (mirroredY) row = height - 1 - row;
      const from = (row * width + column) * channels;
      for (let c = 0; c < channels; c++) turned[to++] = data[from + c];
    }
  }
  return { ...picture, data: turned, width: newWidth, height: newHeight };
}
