/** The overlay: start, progress, stop, opacity, and what it found in words. */

import { paintOverlay } from "./paint.js";

const element = (id) => document.getElementById(id);
const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
const TELLING = 0.02; // a fall in probability below this is not worth calling a finding

export class Explanation {
  #client;
  #hooks;
  #result = null;
  #facts = null;

  /**
   * @param {import("./client.js").Client} client
   * @param {{onStatus: (text: string) => void, onFinding: (text: string) => void,
   *   onBusy: (share: number | null) => void, onProblem: (error: Error) => void}} hooks
   */
  constructor(client, hooks) {
    this.#client = client;
    this.#hooks = hooks;
    element("explain-start").addEventListener("click", () => this.#explain());
    element("explain-cancel").addEventListener("click", () => client.cancel());
    element("opacity").addEventListener("input", () => this.#setOpacity());
    this.#setOpacity();
  }

  /** Forget the last picture's overlay; from now on explain this result. */
  reset(result, facts) {
    this.#client.cancel();
    this.#result = result;
    this.#facts = facts;
    element("overlay").hidden = true;
    element("overlay-controls").hidden = true;
    element("explain-text").hidden = true;
    this.#offer(true);
  }

  async #explain() {
    const result = this.#result;
    const best = result.probabilities.indexOf(Math.max(...result.probabilities));
    const hadFocus = document.activeElement === element("explain-start");
    this.#offer(false);
    if (hadFocus) element("explain-cancel").focus();
    this.#hooks.onStatus("Looking at the parts of the picture …");
    try {
      const map = await this.#client.ask("explain", { label: best }, (share) => {
        if (result === this.#result) this.#hooks.onBusy(share);
      });
      if (result === this.#result) this.#show(map);
    } catch (error) {
      if (result !== this.#result) return; // another picture has come
      if (error.kind === "cancelled") this.#hooks.onStatus("Stopped.");
      else this.#hooks.onProblem(error);
    } finally {
      if (result === this.#result) {
        this.#hooks.onBusy(null);
        const hasFocus = document.activeElement === element("explain-cancel");
        this.#offer(true);
        if (hasFocus) element("explain-start").focus();
      }
    }
  }

  #show(map) {
    paintOverlay(element("overlay"), map);
    element("overlay").hidden = false;
    element("overlay-controls").hidden = false;
    element("explain-text").hidden = false;
    const label = this.#facts.labels[map.label];
    element("legend-label").textContent = label;
    const before = this.#result.probabilities[map.label];
    const seconds = (map.times.explain / 1000).toFixed(1);
    const text =
      before - map.lowest < TELLING
        ? `No single part decides: whatever is darkened, ${label} keeps at least ${percent(map.lowest)} of ${percent(before)}.`
        : `Darkening the part that counts most takes ${label} from ${percent(before)} to ${percent(map.lowest)}.`;
    element("explain-text").textContent = `${text} (${seconds} s)`;
    element("explain").dataset.explain = map.times.explain;
    this.#hooks.onFinding(text);
  }

  #offer(ready) {
    element("explain-start").hidden = !ready;
    element("explain-start").textContent = element("overlay").hidden ? "Show them" : "Show them again";
    element("explain-cancel").hidden = ready;
  }

  #setOpacity() {
    element("overlay").style.opacity = element("opacity").value / 100;
  }
}
