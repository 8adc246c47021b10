/** The answer in words and bars. Labels and names go into the page as text, never as markup. */

import { paintSquare } from "./paint.js";

const element = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const milliseconds = (time) => (time < 10 ? `${time.toFixed(1)}\u00a0ms` : `${Math.round(time)}\u00a0ms`);

/**
 * Show a result.
 *
 * @param {object} result - As worker.js answers to "classify".
 * @param {import("./facts.js").Facts} facts
 * @param {string} name - Of the file.
 * @returns {string} One sentence that says it all, for screen readers.
 */
export function showResult(result, facts, name) {
  const { picture, square, probabilities, times } = result;
  const order = probabilities.map((_, index) => index).sort((one, other) => probabilities[other] - probabilities[one]);
  const [best] = order;
  const foreign = picture.foreign.length > 0;

  element("file-name").textContent = `${name} · ${picture.format}, ${picture.width} × ${picture.height} pixels`;
  const [verdict, more] = wordsFor(facts, facts.labels[best], probabilities[best], foreign);
  element("verdict").textContent = verdict;
  element("verdict").classList.toggle("unsure", verdict !== facts.labels[best]);
  element("verdict-more").textContent = more;
  showWarnings(picture);
  showBars(order, probabilities, facts.labels);
  const calibrated = facts.temperature === null ? "not calibrated" : `calibrated (temperature ${facts.temperature.toFixed(2)})`;
  element("threshold").textContent =
    `Probabilities are ${calibrated}. Below ${percent(facts.threshold)} for the likeliest name the model abstains.`;

  paintSquare(element("square"), square);
  element("caption").textContent = captionOf(square, picture, facts.preprocessing);
  const total = times.decode + times.preprocess + times.model;
  element("times").textContent =
    `Took ${milliseconds(total)}: decoding ${milliseconds(times.decode)}, preprocessing ${milliseconds(times.preprocess)}, ` +
    `model ${milliseconds(times.model)}.`;
  const section = element("result");
  section.hidden = false;
  Object.assign(section.dataset, times);
  const likeliest = order.slice(0, 3).map((index) => `${facts.labels[index]} ${percent(probabilities[index])}`);
  return `${verdict}. ${likeliest.join(", ")}.`;
}

function wordsFor({ labels, threshold }, label, probability, foreign) {
  if (foreign) {
    return ["Does not look like an MRI slice", `The model would call it ${label} (${percent(probability)}): it has a name for every picture.`];
  }
  if (probability < threshold) {
    const asked = `less than the ${percent(threshold)} asked for`;
    return ["Not sure enough to say", `The likeliest name, ${label}, gets only ${percent(probability)}, ${asked}.`];
  }
  return [label, `Of ${labels.length} names, the model gives this one ${percent(probability)}.`];
}

/**
 * Show what the model is.
 *
 * @param {import("./facts.js").Facts} facts
 */
export function showModel(facts) {
  const [, side] = facts.preprocessing.input_size;
  const lines = [
    ["Name", facts.name],
    ["Network", `${facts.architecture}, ${(facts.file.bytes / 1e6).toFixed(1)} MB, looks at ${side} × ${side} pixels`],
    ["Names it knows", facts.labels.join(", ")],
    ...facts.results.map(({ name, value, data }) => [name, `${percent(value)} (${data})`]),
  ];
  const list = element("model-facts");
  list.replaceChildren();
  for (const [term, description] of lines) {
    list.append(textElement("dt", term), textElement("dd", description));
  }
  document.title = `${facts.name}: brain MRI slice classifier`;
  element("lead").textContent = `${facts.name} is a small network (${facts.architecture}) that names the tumour in a slice, right here in your browser.`;
  element("model-warning").textContent = facts.warning ?? "";
  element("model-warning").hidden = !facts.warning;
  if (facts.card && /^https?:\/\//.test(facts.card)) {
    element("card").href = facts.card;
    element("card-line").hidden = false;
  }
  element("about").hidden = false;
}

function showWarnings({ foreign, doubtful, notes }) {
  const boxes = [];
  if (foreign.length > 0) {
    boxes.push(textElement("p", `Why: ${foreign.join("; ")}. If it is no slice, the numbers below mean nothing.`, "notice"));
  }
  const small = [...doubtful, ...notes].join(" ");
  if (small) boxes.push(textElement("p", small, "quiet"));
  element("warnings").replaceChildren(...boxes);
}

function showBars(order, probabilities, labels) {
  const rows = order.map((index, place) => {
    const row = document.createElement("tr");
    row.dataset.label = labels[index];
    row.dataset.probability = probabilities[index];
    const name = textElement("th", labels[index]);
    name.scope = "row";
    const bar = document.createElement("span");
    bar.className = place === 0 ? "bar first" : "bar";
    bar.style.width = `${100 * probabilities[index]}%`;
    const cell = document.createElement("td");
    cell.className = "track";
    cell.append(bar);
    row.append(name, cell, textElement("td", percent(probabilities[index])));
    return row;
  });
  element("bars").replaceChildren(...rows);
}

function captionOf(square, picture, how) {
  const cut = how.crop_mode === "center" && (how.crop_pct < 1 || picture.width !== picture.height) ? ", its edges cut off" : "";
  const squashed = how.crop_mode === "squash" && picture.width !== picture.height ? ", squeezed to a square" : "";
  return `What the model sees: ${square.width} × ${square.height} pixels${squashed}${cut}.`;
}

function textElement(tag, text, className = "") {
  return Object.assign(document.createElement(tag), { textContent: text, className });
}
