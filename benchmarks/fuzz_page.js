/** One damaged file after the other through all that the page does before its model; served beside the page's scripts. */

import { openFile, windowed } from "./decode.js";
import { readFacts } from "./facts.js";
import { fit, normalise } from "./preprocess.js";
import { Refusal } from "./refusal.js";
import { lookAt } from "./statistics.js";

const facts = readFacts();

self.onmessage = async ({ data: bytes }) => {
  const { preprocessing } = await facts;
  const start = performance.now();
  let verdict = "valid";
  let digest = null;
  try {
    const pictures = await picturesIn(bytes);
    for (const picture of pictures) use(picture, preprocessing);
    digest = await digestOf(pictures[0]);
  } catch (error) {
    verdict = error instanceof Refusal ? "refused" : `${error?.name}: ${error?.message ?? error}`;
  }
  self.postMessage({ verdict, digest, seconds: (performance.now() - start) / 1000 });
};

/** The picture, or the middle slice of each plane of a volume. */
async function picturesIn(bytes) {
  const { picture, volume } = await openFile(bytes);
  if (picture) return [picture];
  return Object.entries(volume.counts).map(([plane, count]) => windowed(volume.slice(plane, count >> 1), "NIfTI"));
}

/** As worker.js does; what comes out must be a picture and numbers. */
function use(picture, preprocessing) {
  const { data, width, height, channels } = picture;
  if (data.length !== width * height * channels) throw new Error(`${data.length} values of ${width} × ${height} × ${channels}`);
  const tensor = normalise(fit(picture, preprocessing), preprocessing);
  if (!tensor.every(Number.isFinite)) throw new Error("the model would be given numbers that are not finite");
  lookAt(picture);
}

/** SHA-256 of width, height and RGB, so that Python's pixels can be compared. */
async function digestOf({ data, width, height, channels }) {
  const rgb = new Uint8Array(8 + 3 * width * height);
  new DataView(rgb.buffer).setUint32(0, width);
  new DataView(rgb.buffer).setUint32(4, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) rgb[8 + 3 * i + c] = data[channels * i + (channels === 3 ? c : 0)];
  }
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", rgb));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
