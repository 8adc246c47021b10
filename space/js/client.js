/** The page's side of the worker: a promise for each request. */

/** What the worker could not do; `kind` is "refused" (the message is for people), "cancelled" or "failed". */
export class WorkerError extends Error {
  constructor({ kind, message }) {
    super(message);
    this.kind = kind;
  }
}

export class Client {
  #worker;
  #waiting = new Map();
  #lastId = 0;

  constructor() {
    // A worker from a blob lives under this page's Content-Security-Policy; one from a file would have none of its own.
    const source = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
    const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
    this.#worker = new Worker(url, { type: "module" });
    this.#worker.onmessage = ({ data }) => this.#receive(data);
    this.#worker.onerror = () => this.#giveUp();
  }

  /**
   * Ask for something.
   *
   * @param {"load" | "classify" | "slice" | "explain"} action
   * @param {object} [request]
   * @param {(share: number) => void} [onProgress] - 0 to 1.
   * @returns {Promise<any>}
   * @throws {WorkerError}
   */
  ask(action, request = {}, onProgress = () => {}) {
    const id = ++this.#lastId;
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject, onProgress });
      this.#worker.postMessage({ id, action, ...request });
    });
  }

  /** Stop an explanation that is under way; anything else goes on. */
  cancel() {
    this.#worker.postMessage({ action: "cancel" });
  }

  #receive({ id, progress, result, error }) {
    const request = this.#waiting.get(id);
    if (progress !== undefined) return request.onProgress(progress);
    this.#waiting.delete(id);
    if (error) request.reject(new WorkerError(error));
    else request.resolve(result);
  }

  #giveUp() {
    const message = "The page's worker could not be started or broke off; reload the page. A browser of 2023 or later is needed.";
    for (const { reject } of this.#waiting.values()) reject(new WorkerError({ kind: "refused", message }));
    this.#waiting.clear();
  }
}
