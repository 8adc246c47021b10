"""The page in a real browser: it computes what Python computes, says what it cannot do, keeps everything to itself."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from page_browser import PATIENCE, answer, chromium, forget_answer, give, open_page, served
from PIL import Image

from hf_kdmri import StudentForImageClassification
from hf_kdmri.data.pixels import window_to_uint8
from hf_kdmri.inference import ImageClassifier, read_image, save_temperature
from tests.in_browser import IN_BROWSER
from tests.space_pictures import colour, grey, head, write_nifti, write_pictures
from tests.space_refused import write_refused

pytestmark = IN_BROWSER
EVIL = '<script>document.title="taken"</script><img src=x onerror=alert(1)>'
CARD = "https://huggingface.co/jane/kdmri-student"
MODELS = {
    "test_vit": (["meningioma", "glioma", "pituitary"], 64, 1.7),
    "mobilenetv4_conv_small": (["meningioma", EVIL, "pituitary", "a & b"], 96, None),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return folder, write_pictures(folder)


def build(name: str, images: list[Image.Image], folder: Path) -> tuple[ImageClassifier, Path]:
    """A random model whose head is scaled so that the pictures get different answers, and the page with it."""
    from hf_kdmri.hub.space_page import write_space

    labels, size, temperature = MODELS[name]
    torch.manual_seed(1)
    student = StudentForImageClassification.from_timm(name, labels=labels, image_size=size)
    student.save_pretrained(folder / "student")
    with torch.no_grad():
        logits = student.eval()(ImageClassifier(str(folder / "student")).processor(images)["pixel_values"]).logits
        mean, spread = logits.mean(0), logits.std(0)
        head = student.timm_model.get_classifier()
        head.weight.mul_(2 / spread[:, None])
        head.bias.copy_((head.bias - mean) * 2 / spread)
    student.save_pretrained(folder / "student")
    save_temperature(folder / "student", temperature)
    classifier = ImageClassifier(str(folder / "student"), calibrated=temperature is not None)
    assert set(classifier.probabilities(images).argmax(1)) == set(range(len(labels)))
    return classifier, write_space(folder / "page", folder / "student", name=f"Student {EVIL}", card=CARD)


@pytest.fixture(scope="module")
def built(pictures, tmp_path_factory) -> Callable[[str], tuple[ImageClassifier, Path]]:
    """Builds each model once."""
    images = list(pictures[1].values())
    return functools.cache(lambda name: build(name, images, tmp_path_factory.mktemp(name)))


@pytest.fixture(scope="module")
def model(built) -> ImageClassifier:
    return built("mobilenetv4_conv_small")[0]


@pytest.fixture(scope="module")
def page_folder(built) -> Path:
    return built("mobilenetv4_conv_small")[1]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(page_folder):
    with served(page_folder) as address:
        yield address


@pytest.fixture
def page(browser, address):
    page = open_page(browser, address)
    yield page
    assert page.wrong == []
    page.close()


@pytest.mark.parametrize("name", MODELS)
def test_the_page_says_what_python_says(browser, built, pictures, name) -> None:
    folder, expected = pictures
    classifier, page_folder = built(name)
    differences, highest = {}, []
    with served(page_folder) as address:
        page = open_page(browser, address)
        for file, image in expected.items():
            said = give(page, folder / file)
            assert not page.is_visible("#problem"), (file, page.inner_text("#problem"))
            [probabilities] = classifier.probabilities([image])
            best = classifier.labels[int(probabilities.argmax())]
            assert max(said, key=said.__getitem__) == best, file
            verdict = best if probabilities.max() >= 0.5 else "Not sure enough to say"
            if page.locator("#warnings .notice").count():
                verdict = "Does not look like an MRI slice"
            assert page.inner_text("#verdict") == verdict, file
            differences[file] = np.abs([said[label] for label in classifier.labels] - probabilities).max()
            highest.append(probabilities.max())
        page.close()
    assert len(differences) >= 20
    assert max(highest) - min(highest) > 0.4  # so that equal numbers mean something
    if PIL.__version__.split(".")[0] < "13":
        del differences["turned.png"]  # tall: earlier versions resized its sides in the other order
    assert max(differences.values()) < 1e-3, {file: d for file, d in differences.items() if d >= 1e-3}


def test_nothing_leaves_the_origin_and_no_label_becomes_markup(page, address, pictures) -> None:
    give(page, pictures[0] / "grey.png")
    page.click("#explain-start")
    page.wait_for_selector("#overlay:not([hidden])", timeout=PATIENCE)
    page.wait_for_selector("#explain-start:not([hidden])")
    assert all(url.startswith((address, f"blob:{address}")) for url in page.seen), page.seen
    assert page.title().startswith("Student <script>")
    assert page.locator("main script, main img[src=x], footer img").count() == 0
    assert EVIL in page.inner_text("#lead")
    assert page.get_attribute("#card", "href") == CARD


def test_the_policy_holds_in_the_page_and_in_its_worker(browser, address) -> None:
    page = open_page(browser, address)
    elsewhere = "http://127.0.0.1:9/"
    refused = f"fetch('{elsewhere}').then(() => 'sent', (error) => 'refused')"
    assert page.evaluate(refused) == "refused"
    [worker] = page.workers
    assert worker.evaluate(refused) == "refused"
    assert len([text for text in page.wrong if "Content Security Policy" in text and elsewhere in text]) == 2
    page.close()


def test_keyboard_alone_does_everything(page, pictures) -> None:
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#examples') !== null"):
            break
    page.keyboard.press("Enter")
    assert answer(page)
    assert page.inner_text("#spoken") != ""
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "explain-start":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector("#explain-cancel:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "explain-cancel"
    page.keyboard.press("Enter")
    page.wait_for_selector("#explain-start:not([hidden])", timeout=PATIENCE)
    assert page.inner_text("#status") == "Stopped."
    assert page.evaluate("document.activeElement.id") == "explain-start"


@pytest.mark.parametrize(("event", "carrier"), [("drop", "dataTransfer"), ("paste", "clipboardData")])
def test_dropped_and_pasted_pictures(page, model, pictures, event, carrier) -> None:
    folder, expected = pictures
    [probabilities] = model.probabilities([expected["rgb.png"]])
    bytes_ = list((folder / "rgb.png").read_bytes())
    fire = """([event, carrier, bytes]) => {
        const transfer = new DataTransfer();
        if (bytes) transfer.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
        const kinds = { drop: DragEvent, paste: ClipboardEvent };
        document.body.dispatchEvent(new kinds[event](event, { [carrier]: transfer, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(fire, [event, carrier, bytes_])
    said = answer(page)
    assert [said[label] for label in model.labels] == pytest.approx(probabilities, abs=1e-3)
    assert page.inner_text("#file-name").startswith("dropped.png")
    page.evaluate(fire, [event, carrier, None])
    page.wait_for_selector("#problem:not([hidden])")
    assert "is no file" in page.inner_text("#problem")


def test_what_cannot_be_read_is_refused_with_a_reason(page, tmp_path, pictures) -> None:
    for name, (file, reason) in write_refused(tmp_path).items():
        forget_answer(page)
        page.set_input_files("#file", file)
        page.wait_for_selector("#problem:not([hidden]), #result:not([hidden])", timeout=PATIENCE)
        assert page.is_visible("#problem"), name
        assert reason in page.inner_text("#problem"), (name, page.inner_text("#problem"))
        assert not page.is_visible("#result"), name
    assert give(page, pictures[0] / "grey.png")  # and it goes on
    assert not page.is_visible("#problem")


def test_foreign_pictures_are_warned_of_and_slices_are_not(page, pictures, tmp_path) -> None:
    give(page, pictures[0] / "grey16.png")
    assert page.locator("#warnings .notice").count() == 0
    assert "percentiles" in page.inner_text("#warnings")
    for name, pixels in (("colourful", colour(90, 90, 1)), ("bright", 255 - grey(90, 90, 1))):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
        give(page, tmp_path / f"{name}.png")
        assert page.inner_text("#verdict") == "Does not look like an MRI slice"
        assert name in page.inner_text("#warnings .notice")
    for pixels, said in ((grey(90, 90, 1) // 200, "it has only 2 grey levels"), (grey(90, 90, 1) * 0, "are equal")):
        Image.fromarray(pixels).save(tmp_path / "few.png")
        give(page, tmp_path / "few.png")
        assert said in page.inner_text("#warnings .notice")


def test_slices_of_a_volume_however_it_lies(page, model, tmp_path) -> None:
    classifier = model
    volume = np.stack([head(40, 36, seed, 1000).astype(np.int16) for seed in range(7)], axis=-1)  # (row, column, slice)
    # rows run from front to back and columns from right to left, so along the world's axes both are turned
    upright = volume.transpose(1, 0, 2)[::-1, ::-1]
    for name, voxels, affine in (
        ("along.nii", upright, np.diag([1, 1, 1, 1.0])),
        ("against.nii", upright[::-1, :, ::-1], np.diag([-1, 1, -1, 1.0])),
        ("swapped.nii", upright.transpose(2, 0, 1), np.array([[0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])),
    ):
        write_nifti(tmp_path / name, voxels, affine)
        said = give(page, tmp_path / name)
        shown = Image.fromarray(window_to_uint8(volume[..., 3])[0]).convert("RGB")
        [probabilities] = classifier.probabilities([shown])
        assert [said[label] for label in classifier.labels] == pytest.approx(probabilities, abs=1e-3), name
        assert page.inner_text("#index-shown") == "4 of 7"
    page.select_option("#plane", "coronal")
    page.wait_for_selector("#index-shown:text-is('21 of 40')", timeout=PATIENCE)
    page.focus("#index")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#index-shown:text-is('20 of 40')", timeout=PATIENCE)


def test_a_phone_scrolls_in_one_direction_only(browser, address, pictures) -> None:
    page = open_page(browser, address, viewport={"width": 360, "height": 740}, has_touch=True)
    give(page, pictures[0] / "rgb.png")
    page.click("#explain-start")
    page.wait_for_selector("#overlay-controls:not([hidden])", timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_known_barrier(browser, address, pictures, scheme) -> None:
    axe = Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js"
    if not axe.is_file():
        pytest.skip("axe-core is not there: npm install --no-save axe-core")
    page = open_page(browser, address, color_scheme=scheme, bypass_csp=True)
    give(page, pictures[0] / "rgb.png")
    page.click("#explain-start")
    page.wait_for_selector("#overlay-controls:not([hidden])", timeout=PATIENCE)
    page.add_script_tag(path=axe)
    found = page.evaluate("axe.run()")["violations"]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []
    page.close()


def test_a_page_without_its_model_names_the_command(browser, page_folder, tmp_path) -> None:
    copy = shutil.copytree(page_folder, tmp_path / "page")
    facts = json.loads((copy / "model.json").read_text())
    for change, reason in (
        (lambda: (copy / "model.onnx").write_bytes(b"another"), "is not the file that model.json describes"),
        (lambda: (copy / "model.onnx").unlink(), "kdmri space FOLDER --model STUDENT"),
        (lambda: (copy / "model.json").write_text(json.dumps({**facts, "threshold": 2})), "its threshold"),
        (lambda: (copy / "model.json").write_text("{"), "is no JSON"),
        (lambda: (copy / "model.json").unlink(), "model.json is missing"),
    ):
        change()
        with served(copy) as address:
            page = open_page(browser, address)
            assert reason in page.inner_text("#problem")
            page.close()


def test_from_disk_or_without_scripts_the_page_says_how(browser, page_folder, address) -> None:
    page = browser.new_page()
    page.goto((page_folder / "index.html").as_uri())
    page.wait_for_selector("#not-started", state="visible")
    assert "python -m http.server" in page.inner_text("#not-started")
    page.close()
    page = browser.new_page(java_script_enabled=False)
    page.goto(address)
    page.wait_for_selector("#not-started", state="visible")
    assert "scripts are switched off" in page.inner_text("#not-started")
    page.close()


def test_python_reads_the_examples_too(page_folder) -> None:
    examples = sorted((page_folder / "examples").iterdir())
    assert len(examples) == 3
    for example in examples:
        assert example.stat().st_size < 60_000
        assert read_image(example).size == (256, 256)
        with Image.open(example) as picture:
            assert picture.mode == "L"
