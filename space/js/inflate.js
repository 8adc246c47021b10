/** Inflate with the browser's own decompressor, never more than was expected. */

import { Refusal } from "./refusal.js";

/**
 * Inflate until so many bytes are there; what follows is not read, so a small file cannot fill the memory.
 *
 * @param {Uint8Array[]} parts - The packed stream, in pieces.
 * @param {"deflate" | "gzip"} format - "deflate" is zlib's form, as PNG has it.
 * @param {number} most - Bytes wanted at most.
 * @returns {Promise<Uint8Array>} That many, or fewer if the stream ends before.
 * @throws {Refusal} The stream is damaged.
 */
export async function inflate(parts, format, most) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream(format)).getReader();
  const out = new Uint8Array(most);
  let filled = 0;
  try {
    while (filled < most) {
      const { done, value } = await reader.read();
      if (done) break;
      const part = value.subarray(0, most - filled);
      out.set(part, filled);
      filled += part.length;
    }
    await reader.cancel();
  } catch {
    throw new Refusal("The file's compressed part is damaged or cut off; save it again.");
  }
  return out.subarray(0, filled);
}
