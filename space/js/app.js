/** The page: load the model, take pictures, show answers. */

import { Client } from "./client.js";
import { Explanation } from "./explanation.js";
import { listenForPictures } from "./inputs.js";
import { showModel, showResult } from "./results.js";

const element = (id) => document.getElementById(id);

let client;
let explanation;
let facts = null;
let latest = 0; // number of the newest request; answers to older ones are not shown
let shownName = "";
let wantedSlice = null;
let cutting = false;

element("not-started").remove();
if (typeof WebAssembly !== "object") {
  showProblem("WebAssembly is switched off in this browser, and the model runs in it. Switch it on, or use another browser.");
} else {
  start();
}

async function start() {
  client = new Client();
  explanation = new Explanation(client, {
    onStatus: showStatus,
    onFinding: speak,
    onBusy: showBusy,
    onProblem: (error) => showProblem(messageOf(error)),
  });
  showStatus("Loading the model and its runtime …");
  showBusy(0);
  try {
    const loaded = await client.ask("load", {}, showBusy);
    facts = loaded.facts;
    Object.assign(document.body.dataset, { fetch: loaded.times.fetch, start: loaded.times.start });
  } catch (error) {
    showStatus("");
    showBusy(null);
    showProblem(messageOf(error));
    return;
  }
  showModel(facts);
  element("input").hidden = false;
  listenForPictures((file, name) => classify("classify", { file }, name), showProblem);
  for (const control of ["plane", "index"]) element(control).addEventListener("input", () => cutVolume(control));
  speak("Ready.");
  showBusy(null);
  document.body.dataset.ready = "yes";
}

async function classify(action, request, name) {
  const number = ++latest;
  client.cancel();
  hideProblem();
  showStatus("Classifying …");
  try {
    const result = await client.ask(action, request);
    if (number !== latest) return;
    shownName = name;
    const sentence = showResult(result, facts, name);
    explanation.reset(result, facts);
    showVolume(result.volume);
    speak(sentence);
    if (action === "classify") bringIntoView();
  } catch (error) {
    if (number !== latest) return;
    element("result").hidden = true;
    showStatus("");
    showProblem(messageOf(error));
  } finally {
    if (number === latest) showBusy(null);
  }
}

/** Cut where the controls stand; while one slice is being classified, only the newest wish is kept. */
async function cutVolume(control) {
  const plane = element("plane").value;
  const count = Number(element("plane").selectedOptions[0].dataset.count);
  wantedSlice = { plane, index: control === "plane" ? count >> 1 : Number(element("index").value) };
  if (cutting) return;
  cutting = true;
  while (wantedSlice) {
    const request = wantedSlice;
    wantedSlice = null;
    await classify("slice", request, shownName);
  }
  cutting = false;
}

function showVolume(volume) {
  element("slices").hidden = !volume;
  if (!volume) return;
  for (const option of element("plane").options) option.dataset.count = volume.counts[option.value];
  element("plane").value = volume.plane;
  element("index").max = volume.counts[volume.plane] - 1;
  element("index").value = volume.index;
  element("index-shown").textContent = `${volume.index + 1} of ${volume.counts[volume.plane]}`;
}

function bringIntoView() {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  element("result").scrollIntoView({ behavior: still ? "instant" : "smooth", block: "nearest" });
}

/** Say what is going on. */
function showStatus(text) {
  element("status").textContent = text;
}

/** Tell a screen reader what the page shows elsewhere; nothing is going on any more. */
function speak(text) {
  showStatus("");
  element("spoken").textContent = text;
}

function showBusy(share) {
  element("busy-bar").hidden = share === null;
  if (share !== null) element("busy-bar").value = share;
}

function showProblem(message) {
  element("problem").textContent = message;
  element("problem").hidden = false;
}

function hideProblem() {
  element("problem").hidden = true;
}

function messageOf(error) {
  return error.kind === "refused" ? error.message : `Something failed that should not (${error.message}). Reload the page.`;
}
