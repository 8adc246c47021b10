/** The ways a picture comes in: chosen, dropped anywhere on the page, pasted, or one of the examples. */

const EXAMPLES = [
  { file: "examples/phantom_meningioma.png", drawn: "meningioma" },
  { file: "examples/phantom_glioma.png", drawn: "glioma" },
  { file: "examples/phantom_pituitary.png", drawn: "pituitary tumour" },
];

/**
 * Listen for pictures.
 *
 * @param {(file: Blob, name: string) => void} onPicture
 * @param {(message: string) => void} onProblem
 */
export function listenForPictures(onPicture, onProblem) {
  const input = document.getElementById("file");
  const drop = document.getElementById("drop");
  input.addEventListener("change", () => {
    const [file] = input.files;
    if (file) onPicture(file, file.name);
    input.value = ""; // so that the same file can be chosen again
  });

  let depth = 0; // dragenter and dragleave come for every element passed
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    drop.classList.toggle("over", depth > 0);
  };
  document.addEventListener("dragenter", () => mark(1));
  document.addEventListener("dragleave", () => mark(-1));
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(-depth);
    takeFrom(event.dataTransfer, "dropped", onPicture, onProblem);
  });
  document.addEventListener("paste", (event) => takeFrom(event.clipboardData, "pasted", onPicture, onProblem));
  showExamples(onPicture, onProblem);
}

function takeFrom(transfer, how, onPicture, onProblem) {
  const files = [...(transfer?.files ?? [])];
  if (files.length === 1) onPicture(files[0], files[0].name || `${how} picture`);
  else if (files.length > 1) onProblem(`${files.length} files were ${how}; give one at a time.`);
  else onProblem(`What was ${how} is no file. Copy the picture itself, not a link or text, or save it and choose the file.`);
}

function showExamples(onPicture, onProblem) {
  const list = document.getElementById("examples");
  for (const { file, drawn } of EXAMPLES) {
    const button = document.createElement("button");
    button.type = "button";
    const picture = Object.assign(document.createElement("img"), { src: file, alt: "", width: 96, height: 96 });
    const title = document.createElement("span");
    title.textContent = `Generated, drawn as ${drawn}`;
    button.append(picture, title);
    button.addEventListener("click", async () => {
      try {
        const response = await fetch(file);
        if (!response.ok) throw new TypeError(`${response.status}`);
        onPicture(await response.blob(), title.textContent);
      } catch {
        onProblem(`The example ${file} could not be fetched.`);
      }
    });
    const item = document.createElement("li");
    item.append(button);
    list.append(item);
  }
}
