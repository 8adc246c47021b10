/** The student in onnxruntime-web: WebAssembly on one thread, which needs no special headers from the server. */

import * as ort from "../onnxruntime-web/ort.wasm.min.mjs";

import { Refusal } from "./refusal.js";

export class Model {
  #session;
  #facts;

  /** @param {import("./facts.js").Facts} facts */
  constructor(session, facts) {
    this.#session = session;
    this.#facts = facts;
  }

  /**
   * Start the runtime and load the model.
   *
   * @param {Uint8Array} wasm - The runtime's binary, fetched beforehand so that its progress can be shown.
   * @param {Uint8Array} onnx
   * @param {import("./facts.js").Facts} facts
   * @throws {Refusal} The runtime cannot read the model.
   */
  static async load(wasm, onnx, facts) {
    ort.env.wasm.numThreads = 1;
    ort.env.wasm.wasmBinary = wasm.buffer;
    ort.env.wasm.wasmPaths = { mjs: new URL("../onnxruntime-web/ort-wasm-simd-threaded.mjs", import.meta.url).href };
    try {
      const session = await ort.InferenceSession.create(onnx, { executionProviders: ["wasm"], logSeverityLevel: 3 });
      return new Model(session, facts);
    } catch (error) {
      throw new Refusal(`The model cannot be started in this browser (${error.message}). A browser of 2023 or later is needed.`);
    }
  }

  /**
   * Classify a batch.
   *
   * @param {Float32Array} pixels - (batch, 3, side, side).
   * @param {number} batch
   * @returns {Promise<number[][]>} Probabilities, calibrated if there is a temperature; each row sums to 1.
   */
  async classify(pixels, batch) {
    const side = this.#facts.preprocessing.input_size[1];
    const input = new ort.Tensor("float32", pixels, [batch, 3, side, side]);
    const { logits } = await this.#session.run({ pixel_values: input });
    const classes = this.#facts.labels.length;
    if (logits.dims[1] !== classes) {
      throw new Refusal(`The model tells ${logits.dims[1]} classes apart, model.json names ${classes}; write both again with kdmri space.`);
    }
    const rows = Array.from({ length: batch }, (_, row) => logits.data.slice(row * classes, (row + 1) * classes));
    return rows.map((row) => softmax(row, this.#facts.temperature ?? 1));
  }
}

function softmax(logits, temperature) {
  const largest = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp((logit - largest) / temperature));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}
