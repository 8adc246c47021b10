/** JPEG, WebP, GIF and BMP through the browser's own decoders. */

import { Refusal, checkSides } from "./refusal.js";
import { measure } from "./sniff.js";

/**
 * Decode with the browser, upright, without colour management, as Python reads the same file.
 *
 * @param {Uint8Array} bytes
 * @param {"jpeg" | "gif" | "webp" | "bmp"} kind
 * @returns {Promise<{data: Uint8Array, width: number, height: number, channels: 1 | 3, transparent: boolean}>}
 * @throws {Refusal} Animated, too large, damaged, or the browser hides a canvas's true pixels.
 */
export async function decodeInBrowser(bytes, kind) {
  const header = measure(bytes, kind);
  checkSides(header.width, header.height);
  if (header.animated) throw new Refusal("This picture is animated; save one frame as a picture of its own.");
  if (!canvasIsTrue()) {
    throw new Refusal(
      "Your browser changes the pixels that a page reads (protection against fingerprinting), so the result would be " +
        "wrong. Give a PNG or a DICOM file, which this page decodes by itself, or use another browser.",
    );
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes], { type: `image/${kind}` }), {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
      imageOrientation: "from-image",
    });
  } catch {
    throw new Refusal(`The browser cannot decode this ${kind.toUpperCase()} picture; it is damaged or of a rare kind. Save it as PNG.`);
  }
  const { width, height } = bitmap;
  checkSides(width, height); // a damaged file may say one size in its first header and have another
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return { ...withoutAlpha(context.getImageData(0, 0, width, height).data), width, height };
}

/** Drop alpha, and two of three equal channels: a third of the work later, the same result. */
function withoutAlpha(rgba) {
  let grey = true;
  let transparent = false;
  for (let i = 0; i < rgba.length; i += 4) {
    if (rgba[i] !== rgba[i + 1] || rgba[i] !== rgba[i + 2]) grey = false;
    if (rgba[i + 3] !== 255) transparent = true;
  }
  const channels = grey ? 1 : 3;
  const data = new Uint8Array((rgba.length / 4) * channels);
  if (grey) for (let from = 0, to = 0; from < rgba.length; from += 4) data[to++] = rgba[from];
  else {
    for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
      data[to] = rgba[from];
      data[to + 1] = rgba[from + 1];
      data[to + 2] = rgba[from + 2];
    }
  }
  return { data, channels, transparent };
}

/** Whether what is read from a canvas is what was put there; some browsers add noise. */
function canvasIsTrue() {
  const side = 16;
  const context = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  const written = new ImageData(side, side);
  for (let i = 0; i < written.data.length; i++) written.data[i] = i % 4 === 3 ? 255 : (i * 37) % 256;
  context.putImageData(written, 0, 0);
  const read = context.getImageData(0, 0, side, side).data;
  return read.every((value, i) => value === written.data[i]);
}
