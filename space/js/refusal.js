/** Why a picture or a model is not used, in words for the person in front of the page. */
export class Refusal extends Error {}

export const MAX_BYTES = 64 * 2 ** 20;
export const MAX_PIXELS = 40e6; // decoded as RGBA that is 160 MB, about what a phone's browser can spare

/**
 * Refuse sides that no picture has, or more pixels than a phone can hold.
 *
 * @param {number} width
 * @param {number} height
 */
export function checkSides(width, height) {
  if (!(width > 0 && height > 0)) throw new Refusal(`The picture says it has ${width} × ${height} pixels; it is damaged.`);
  if (width * height > MAX_PIXELS) {
    throw new Refusal(
      `The picture has ${width} × ${height} pixels; this page takes at most ${MAX_PIXELS / 1e6} million. Make it smaller first.`,
    );
  }
}
