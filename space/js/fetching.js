/** Files from the page's own folder, with progress. */

import { Refusal } from "./refusal.js";

/**
 * Fetch a file that lies beside the page.
 *
 * @param {string} path - From the page's folder.
 * @param {(received: number) => void} [onBytes]
 * @returns {Promise<Uint8Array>}
 * @throws {Refusal} It is not there.
 */
export async function fetchBeside(path, onBytes = () => {}) {
  const url = new URL(`../${path}`, import.meta.url);
  let response;
  try {
    response = await fetch(url);
  } catch {
    throw new Refusal(`${path} could not be fetched: the connection to the page's server is gone. Reload the page.`);
  }
  if (response.status === 404) throw new Missing(path);
  if (!response.ok) throw new Refusal(`${path} could not be fetched: the server answered ${response.status}. Reload the page.`);
  const parts = [];
  let received = 0;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    received += value.length;
    onBytes(received);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/** A file of the page that is not there. */
export class Missing extends Refusal {
  constructor(path) {
    super(
      `${path} is missing. This folder is the page without a model; put a student into it with ` +
        "kdmri space FOLDER --model STUDENT, then reload.",
    );
  }
}
