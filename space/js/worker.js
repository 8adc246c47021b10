/** All the work, off the page's thread: one request after the other, each answered once, with progress in between. */

import { openFile, windowed } from "./decode.js";
import { fetchModel, readFacts } from "./facts.js";
import { fetchBeside } from "./fetching.js";
import { Model } from "./model.js";
import { GRID, occlude } from "./occlusion.js";
import { fit, normalise } from "./preprocess.js";
import { MAX_BYTES, Refusal } from "./refusal.js";
import { lookAt } from "./statistics.js";

const WASM = { path: "onnxruntime-web/ort-wasm-simd-threaded.wasm", bytes: 14239897 };

class Cancelled extends Error {}

let facts;
let model;
let volume = null;
let current = null; // the square and probabilities on show, for the overlay
let cancelled = false;
let queue = Promise.resolve();

const actions = { load, classify, slice, explain };

self.onmessage = ({ data: { id, action, ...request } }) => {
  if (action === "cancel") {
    cancelled = true;
    return;
  }
  queue = queue.then(() => answer(id, action, request));
};

async function answer(id, action, request) {
  const progress = (part) => self.postMessage({ id, progress: part });
  try {
    self.postMessage({ id, result: await actions[action](request, progress) });
  } catch (error) {
    const kind = error instanceof Refusal ? "refused" : error instanceof Cancelled ? "cancelled" : "failed";
    self.postMessage({ id, error: { kind, message: String(error?.message ?? error) } });
  }
}

async function load(_request, progress) {
  const start = performance.now();
  facts = await readFacts();
  const received = { model: 0, runtime: 0 };
  const total = facts.file.bytes + WASM.bytes;
  const count = (part) => (bytes) => {
    received[part] = bytes;
    progress((received.model + received.runtime) / total);
  };
  const [onnx, wasm] = await Promise.all([fetchModel(facts, count("model")), fetchBeside(WASM.path, count("runtime"))]);
  const fetched = performance.now();
  model = await Model.load(wasm, onnx, facts);
  const side = facts.preprocessing.input_size[1];
  await model.classify(new Float32Array(3 * side * side), 1); // the first run sets memory up: not the first picture's time
  return { facts, times: { fetch: fetched - start, start: performance.now() - fetched } };
}

async function classify({ file }) {
  needModel();
  current = null;
  volume = null;
  if (file.size > MAX_BYTES) {
    throw new Refusal(`The file has ${Math.round(file.size / 2 ** 20)} MB; this page takes at most ${MAX_BYTES / 2 ** 20}.`);
  }
  const start = performance.now();
  const opened = await openFile(await readAll(file));
  if (opened.picture) return look(opened.picture, start, null);
  volume = opened.volume;
  return slice({ plane: "axial", index: volume.counts.axial >> 1 });
}

async function slice({ plane, index }) {
  needModel();
  if (!volume) throw new Refusal("There is no volume to cut; give the file again.");
  current = null;
  const start = performance.now();
  const picture = windowed(volume.slice(plane, index), "NIfTI");
  picture.notes.push(...volume.notes);
  return look(picture, start, { counts: volume.counts, plane, index });
}

async function look(picture, start, volumeFacts) {
  const decoded = performance.now();
  const square = fit(picture, facts.preprocessing);
  const tensor = normalise(square, facts.preprocessing);
  const prepared = performance.now();
  const [probabilities] = await model.classify(tensor, 1);
  const done = performance.now();
  current = { square, probabilities };
  const { width, height, format, notes } = picture;
  return {
    picture: { width, height, format, notes, ...lookAt(picture) },
    square,
    probabilities,
    volume: volumeFacts,
    times: { decode: decoded - start, preprocess: prepared - decoded, model: done - prepared },
  };
}

async function explain({ label }, progress) {
  if (!current) throw new Refusal("There is no picture to explain; give it again.");
  cancelled = false;
  const start = performance.now();
  const onRow = async (rows) => {
    progress(rows / GRID);
    await new Promise((resolve) => setTimeout(resolve)); // lets a message to cancel come in
    if (cancelled) throw new Cancelled("cancelled");
  };
  const map = await occlude(model, current.square, facts, label, current.probabilities[label], { onRow });
  return { ...map, label, times: { explain: performance.now() - start } };
}

function needModel() {
  if (!model) throw new Refusal("The model has not been loaded, so there is nothing to classify with.");
}

async function readAll(file) {
  try {
    return new Uint8Array(await file.arrayBuffer());
  } catch {
    throw new Refusal("The file cannot be read any more; choose it again.");
  }
}
