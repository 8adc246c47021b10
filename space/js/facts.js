/** model.json: what the page knows of its model, checked before anything is computed with it. */

import { fetchBeside } from "./fetching.js";
import { Refusal } from "./refusal.js";
import { INTERPOLATIONS } from "./resize.js";

const SCHEMA = "hf_kdmri/space-model/1";

/**
 * @typedef {object} Facts
 * @property {string} name
 * @property {string} architecture
 * @property {string[]} labels
 * @property {{input_size: number[], mean: number[], std: number[], interpolation: string, crop_pct: number,
 *   crop_mode: "squash" | "center"}} preprocessing
 * @property {number | null} temperature - What logits are divided by; null where none was fitted.
 * @property {number} threshold - Below this highest probability the page says that the model is not sure enough.
 * @property {{name: string, value: number, data: string}[]} results
 * @property {string | null} card - Address of the model card.
 * @property {string | null} warning - For instance that it was trained on generated pictures.
 * @property {{name: string, bytes: number, sha256: string}} file
 */

/**
 * Read model.json.
 *
 * @returns {Promise<Facts>}
 * @throws {Refusal} It is missing or not what `kdmri space` writes.
 */
export async function readFacts() {
  const text = new TextDecoder().decode(await fetchBeside("model.json"));
  let facts;
  try {
    facts = JSON.parse(text);
  } catch {
    throw new Refusal("model.json is no JSON; write it again with kdmri space.");
  }
  const how = facts?.preprocessing ?? {};
  const three = (list) => Array.isArray(list) && list.length === 3 && list.every(Number.isFinite);
  const problem = [
    [facts?.schema === SCHEMA, `its schema is not ${SCHEMA}`],
    [Array.isArray(facts?.labels) && facts.labels.length > 1 && facts.labels.every((label) => typeof label === "string"), "its labels"],
    [three(how.input_size) && how.input_size[0] === 3 && how.input_size[1] === how.input_size[2], "its input_size"],
    [three(how.mean) && three(how.std) && how.std.every((value) => value > 0), "its mean or std"],
    [INTERPOLATIONS.includes(how.interpolation), "its interpolation"],
    [["squash", "center"].includes(how.crop_mode) && how.crop_pct > 0 && how.crop_pct <= 1, "its crop"],
    [facts?.temperature === null || facts?.temperature > 0, "its temperature"],
    [facts?.threshold >= 0 && facts?.threshold <= 1, "its threshold"],
    [typeof facts?.file?.name === "string" && /^[\w.-]+$/.test(facts.file.name), "its file"],
  ].find(([fine]) => !fine);
  if (problem) throw new Refusal(`model.json cannot be used (${problem[1]}); write it again with kdmri space.`);
  return facts;
}

/**
 * Fetch the model and check that it is the one that model.json describes.
 *
 * @param {Facts} facts
 * @param {(received: number) => void} onBytes
 * @returns {Promise<Uint8Array>}
 * @throws {Refusal} Missing, cut off, or another file.
 */
export async function fetchModel({ file }, onBytes) {
  const bytes = await fetchBeside(file.name, onBytes);
  // crypto.subtle exists on https and localhost only; elsewhere the size must do
  const same = !globalThis.crypto?.subtle || (await sha256(bytes)) === file.sha256;
  if (bytes.length !== file.bytes || !same) {
    throw new Refusal(
      `${file.name} is not the file that model.json describes (${bytes.length} of ${file.bytes} bytes` +
        `${same ? "" : ", another checksum"}); write both again with kdmri space.`,
    );
  }
  return bytes;
}

async function sha256(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
