"""`kdmri serve` over real sockets, asked by the Hub's own client."""

from __future__ import annotations

import base64
import json
import logging
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx2
import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError
from picture_mutations import KINDS, dicom_bytes, mutated_picture, npy_bytes, picture_bytes, slice_pixels
from PIL import Image
from typer.testing import CliRunner

from hf_kdmri.cli import app
from hf_kdmri.inference import ImageClassifier
from hf_kdmri.serving.app import Service, create_app
from hf_kdmri.serving.server import CannotListen, make_server, reserve
from hf_kdmri.serving.settings import ServeSettings
from tests.conftest import LABELS
from tests.tiny import sharp_student

GREY, WIDE = slice_pixels().astype(np.uint8), slice_pixels(high=4000)
BATCHED = 2e-5  # another batch size is another order of sums, and the tiny model's head is steep
FILES = {
    "grey.png": picture_bytes(Image.fromarray(GREY), "PNG"),
    "colour.jpg": picture_bytes(Image.fromarray(GREY).convert("RGB"), "JPEG"),
    "wide.png": picture_bytes(Image.fromarray(WIDE), "PNG"),
    "scan.dcm": dicom_bytes(WIDE),
    "scan.npy": npy_bytes(WIDE[::-1]),
}


@pytest.fixture(autouse=True)
def _client_may_ask_this_machine(monkeypatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return sharp_student(tmp_path_factory.mktemp("secret-place") / "student")


class Slow(ImageClassifier):
    """Takes its time over every batch."""

    seconds = 0.3

    def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return super().logits(pixel_values)


@contextmanager
def serving(classifier: ImageClassifier, folder: Path, **limits: Any) -> Iterator[tuple[str, Service]]:
    settings = ServeSettings(**limits)
    service = Service(classifier, str(folder), settings)
    address: list[str] = []
    ready = threading.Event()

    def tell(url: str) -> None:
        address.append(url)
        ready.set()

    server = make_server(create_app(service), settings.timeout, tell)
    with reserve("127.0.0.1", 0) as reserved:
        thread = threading.Thread(target=server.listen, args=(reserved,))
        thread.start()
        try:
            assert ready.wait(30)
            yield address[0], service
        finally:
            server.should_exit = True
            thread.join(60)
            service.close()


@pytest.fixture(scope="module")
def url(model) -> Iterator[str]:
    with serving(ImageClassifier(str(model)), model, timeout=20, max_body=500_000) as (address, _):
        yield address


@pytest.fixture(scope="module")
def predicted(model, tmp_path_factory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("scans")
    for name, encoded in FILES.items():
        (folder / name).write_bytes(encoded)
    result = CliRunner().invoke(
        app, ["predict", str(folder), "--model", str(model), "--batch-size", "1", "--format", "json"]
    )
    assert result.exit_code == 0, result.output
    told = {Path(row["file"]).name: row["scores"] for row in json.loads(result.stdout)}
    assert np.ptp([rows[LABELS[0]] for rows in told.values()]) > 0.01, "the model tells nothing apart"
    return told


def scores(answer: list) -> dict[str, float]:
    return {row["label"]: row["score"] for row in answer}


def post(url: str, body: object) -> httpx2.Response:
    return httpx2.post(url, content=json.dumps(body), headers={"content-type": "application/json"})


def as_text(encoded: bytes) -> str:
    return base64.b64encode(encoded).decode()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("path", ["", "/", "/models/jane/kdmri-student"])
def test_the_hubs_client_gets_what_predict_prints(name, path, url, predicted, tmp_path) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    client = InferenceClient(model=url + path)
    for image in (FILES[name], str(tmp_path / name)):
        answer = client.image_classification(image)
        assert [row.score for row in answer] == sorted((row.score for row in answer), reverse=True)
        assert scores(answer) == pytest.approx(predicted[name], abs=2e-6)


def test_the_clients_parameters(url, model) -> None:
    client = InferenceClient(model=url)
    everything = client.image_classification(FILES["grey.png"])
    assert client.image_classification(FILES["grey.png"], top_k=2) == everything[:2]
    assert client.image_classification(FILES["grey.png"], top_k=99) == everything
    classifier = ImageClassifier(str(model))
    logits = classifier.logits(classifier.prepare([Image.fromarray(GREY).convert("RGB")]))[0]
    functions: list[tuple[Literal["none", "sigmoid", "softmax"], torch.Tensor]]
    functions = [("none", logits), ("sigmoid", logits.sigmoid()), ("softmax", logits.softmax(0))]
    for function, expected in functions:
        answer = scores(client.image_classification(FILES["grey.png"], function_to_apply=function))
        assert answer == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=2e-6)


def test_several_images_in_one_request(url, predicted) -> None:
    answers = post(url, {"inputs": [as_text(data) for data in FILES.values()], "parameters": {"top_k": 3}}).json()
    uploaded = httpx2.post(url, files=[("images", (name, data)) for name, data in FILES.items()]).json()
    for name, answer, form_answer in zip(FILES, answers, uploaded, strict=True):
        assert scores(answer) == pytest.approx(predicted[name], abs=BATCHED)
        assert scores(form_answer) == pytest.approx(predicted[name], abs=BATCHED)
    one = {"inputs": [f"data:image/png;base64,{as_text(FILES['grey.png'])}"]}
    assert [scores(answer) for answer in post(url, one).json()] == [pytest.approx(predicted["grey.png"], abs=BATCHED)]
    form = httpx2.post(url, files={"file": FILES["grey.png"]}, data={"top_k": "1", "function_to_apply": "none"}).json()
    assert len(form) == 1 and form[0]["label"] == max(predicted["grey.png"], key=predicted["grey.png"].get)


def test_a_blank_picture_is_answered_with_a_warning(url) -> None:
    blank = as_text(picture_bytes(Image.new("L", (50, 60), 7), "PNG"))
    assert "x-kdmri-warning" not in post(url, {"inputs": [PNG, PNG]}).headers
    answer = post(url, {"inputs": [PNG, blank]})
    assert answer.status_code == 200 and len(answer.json()) == 2
    assert answer.headers["x-kdmri-warning"].startswith("inputs[1] has 1 grey level,")
    assert len(post(url, {"inputs": [blank] * 30}).headers["x-kdmri-warning"]) < 1000


def test_health_and_info(url) -> None:
    assert httpx2.get(f"{url}/health").json() == {"status": "ready"}
    info = httpx2.get(url).json()
    assert info == httpx2.get(f"{url}/info").json()
    assert (info["model"], info["labels"]) == ("student", LABELS)
    assert "Research use only" in info["notice"] and {"torch", "hf_kdmri"} <= info["versions"].keys()
    described = httpx2.get(f"{url}/openapi.json").json()
    assert {"/", "/models/{name}", "/health", "/info"} <= described["paths"].keys()


PNG = as_text(FILES["grey.png"])


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"inputs": as_text(b"hello")}, 400, "inputs cannot be read as a picture"),
        ({"inputs": [PNG, as_text(FILES["wide.png"][:99])]}, 400, "inputs[1] cannot be read as a picture"),
        ({"inputs": as_text(dicom_bytes(WIDE, NumberOfFrames=2))}, 400, "holds 2 frames"),
        ({"inputs": PNG[:-3] + "!!!"}, 400, "inputs is not valid base64"),
        ({"inputs": "http://169.254.169.254/x.png"}, 400, "inputs is an address, and none is fetched"),
        ({"inputs": [7]}, 400, "inputs[0] is int, expected base64"),
        ({"inputs": []}, 400, "holds no image"),
        ({"image": PNG}, 400, 'no "inputs"'),
        ([PNG], 400, 'no "inputs"'),
        ({"inputs": PNG, "paramters": {}}, 422, "unknown field 'paramters'"),
        ({"inputs": PNG, "parameters": [2]}, 422, "parameters is list"),
        ({"inputs": PNG, "parameters": {"top_k": 0}}, 422, "'top_k'"),
        ({"inputs": PNG, "parameters": {"top_k": True}}, 422, "'top_k'"),
        ({"inputs": PNG, "parameters": {"top_k": "2"}}, 422, "'top_k'"),
        ({"inputs": PNG, "parameters": {"topk": 2}}, 422, "'topk'"),
        ({"inputs": PNG, "parameters": {"function_to_apply": "relu"}}, 422, "'function_to_apply'"),
        ({"inputs": [PNG] * 65}, 413, "holds 65 images, at most 64"),
    ],
)
def test_json_that_cannot_be_answered_says_why(body, status, reason, url) -> None:
    answer = post(url, body)
    assert answer.status_code == status
    assert answer.json().keys() == {"error"} and reason in answer.json()["error"]


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (b"", None, "no body"),
        (b"GIF89a?", "image/gif", "cannot be read as a picture"),
        (b"{", "application/json", "not valid JSON"),
        (b"[" * 100_000, "application/json", "not valid JSON"),
        (b"\xff\xfe", "application/json; charset=utf-8", "not valid JSON"),
        (b"1" * 5000, "application/json", "not valid JSON"),
        (b"abc", "multipart/form-data", "form cannot be read"),
        (b"abc", "multipart/form-data; boundary=x", ""),
        (b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--", "multipart/form-data; boundary=x", ""),
    ],
)
def test_bodies_that_are_no_image_are_refused(body, kind, reason, url) -> None:
    answer = httpx2.post(url, content=body, headers={"content-type": kind} if kind else {})
    assert answer.status_code in (400, 422), answer.text
    assert reason in answer.json()["error"]


def test_the_client_raises_and_no_path_is_told(url, model) -> None:
    with pytest.raises(HfHubHTTPError) as raised:
        InferenceClient(model=url).image_classification(b"no image")
    assert raised.value.response.status_code == 400
    told = raised.value.response.text + httpx2.get(url).text + httpx2.get(f"{url}/nowhere").text
    assert "secret-place" not in told and "/" not in json.loads(raised.value.response.text)["error"]
    assert httpx2.get(f"{url}/nowhere").status_code == 404 and "error" in httpx2.get(f"{url}/nowhere").json()
    assert httpx2.put(url).status_code == 405 and "error" in httpx2.put(url).json()


def test_too_large_a_body_is_refused_before_it_is_read(url) -> None:
    assert httpx2.post(url, content=b"\0" * 600_000).status_code == 413
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 2**30:
            sent += 2**16
            yield b"\0" * 2**16

    start = time.monotonic()
    try:
        answer = httpx2.post(url, content=endless(), timeout=30)  # no Content-Length: chunked
        assert answer.status_code == 413 and "500,000 bytes" in answer.json()["error"]
    except httpx2.NetworkError:  # cut off while it was still sending, as it deserves
        pass
    assert time.monotonic() - start < 20 and sent < 2**26
    assert httpx2.get(f"{url}/health").status_code == 200


def head(url: str, length: int) -> tuple[socket.socket, bytes]:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20), (
        f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode()
    )


def test_who_sends_too_slowly_is_cut_off(model) -> None:
    with serving(ImageClassifier(str(model)), model, timeout=0.5) as (url, service):
        for sent, answer in ((0, b""), (20, b""), (None, b"408")):
            start = time.monotonic()
            connection, request = head(url, 1000)
            with connection:
                connection.sendall(request[:sent] if sent is not None else request + b"\x89PNG")
                received = b""
                while chunk := connection.recv(4096):
                    received += chunk
            assert answer in received and (answer or not received)
            assert 0.4 < time.monotonic() - start < 10
        # A connection that is kept alive is not cut while its requests are whole.
        with httpx2.Client() as client:
            for _ in range(3):
                assert client.post(url, content=FILES["grey.png"]).status_code == 200
                time.sleep(0.3)
        assert service.in_progress == 0


def test_more_than_can_be_served_are_sent_away_with_a_time_to_return(model) -> None:
    with serving(ImageClassifier(str(model)), model, concurrency=1, timeout=20) as (url, service):
        connection, request = head(url, len(FILES["grey.png"]))
        with connection:
            connection.sendall(request + FILES["grey.png"][:10])
            deadline = time.monotonic() + 10
            while not service.in_progress and time.monotonic() < deadline:
                time.sleep(0.01)
            refused = httpx2.post(url, content=FILES["grey.png"])
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
            assert httpx2.get(f"{url}/health").status_code == 200
            connection.sendall(FILES["grey.png"][10:])
            assert b"200 OK" in connection.recv(4096)
        assert httpx2.post(url, content=FILES["grey.png"]).status_code == 200


def test_what_takes_too_long_gets_504(model) -> None:
    with serving(Slow(str(model)), model, timeout=0.2) as (url, service):
        answer = httpx2.post(url, content=FILES["grey.png"])
        assert answer.status_code == 504 and "no answer within 0.2 s" in answer.json()["error"]
        assert service.in_progress == 0


def test_concurrent_requests_share_batches_and_keep_their_answers(model, predicted) -> None:
    with serving(Slow(str(model)), model, batch_size=8) as (url, service), ThreadPoolExecutor(16) as threads:
        names = list(FILES) * 4
        answers = list(threads.map(lambda name: httpx2.post(url, content=FILES[name], timeout=30).json(), names))
        for name, answer in zip(names, answers, strict=True):
            assert scores(answer) == pytest.approx(predicted[name], abs=BATCHED)
        assert 3 <= service.batcher.batches <= 12


def test_a_model_that_fails_is_a_500_in_json_and_the_next_request_is_served(model) -> None:
    class Failing(ImageClassifier):
        calls = 0

        def logits(self, pixel_values: torch.Tensor) -> torch.Tensor:
            Failing.calls += 1
            if Failing.calls == 1:
                raise RuntimeError("/secret-place is broken")
            scale = torch.tensor(float("nan") if Failing.calls == 2 else 1.0)
            return super().logits(pixel_values) * scale

    with serving(Failing(str(model)), model) as (url, _):
        for reason in ("its log says why", "not finite"):
            answer = httpx2.post(url, content=FILES["grey.png"])
            assert answer.status_code == 500 and reason in answer.json()["error"]
        assert httpx2.post(url, content=FILES["grey.png"]).status_code == 200


def test_any_label_is_valid_json(model) -> None:
    classifier = ImageClassifier(str(model))
    classifier.labels = ['"quoted"\n', "\ud800 lone", "日本"]
    with serving(classifier, model) as (url, _):
        answer = httpx2.post(url, content=FILES["grey.png"])
        assert {row["label"] for row in json.loads(answer.content)} == set(classifier.labels)


def _lines(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "hf_kdmri.serving"]


def test_each_request_is_one_line_without_its_image(url, caplog) -> None:
    with caplog.at_level(logging.INFO, "hf_kdmri.serving"):
        httpx2.post(f"{url}/models/a%1Bb", content=FILES["grey.png"])
        httpx2.post(url, content=b"no image of Jane Doe")
        deadline = time.monotonic() + 20  # a line is written after its answer has gone out
        while len(lines := _lines(caplog)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    size = len(FILES["grey.png"])
    assert re.fullmatch(rf"127\.0\.0\.1 POST /models/a%1Bb 200 1 input {size} bytes [\d.]+ ms", lines[0])
    assert lines[1].startswith("127.0.0.1 POST / 400 1 input 20 bytes")
    assert len(lines) == 2 and "Jane" not in "".join(lines)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_pictures_are_answered_or_refused(kind, url) -> None:
    with httpx2.Client() as client:
        for number in range(60):
            encoded = mutated_picture(kind, random.Random(f"serve {kind} {number}"))
            answer = client.post(url, content=encoded)
            assert answer.status_code in (200, 400), answer.text
            assert ("error" in answer.json()) == (answer.status_code == 400)


@pytest.mark.slow
def test_sigterm_finishes_what_is_in_progress_and_exits_with_0(model) -> None:
    command = [sys.executable, "-m", "hf_kdmri.cli", "serve", "--model", str(model), "--port"]
    with subprocess.Popen([*command, "0"], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            found = re.search(r"http://\S+", line_with("http://", process.stderr))
            assert found is not None
            url = found[0]
            second = subprocess.run([*command, url.rpartition(":")[2]], capture_output=True, text=True, timeout=120)
            assert second.returncode == 1
            assert second.stderr.startswith("kdmri: port ") and "choose another --port" in second.stderr
            connection, request = head(url, len(FILES["grey.png"]))
            with connection:
                connection.sendall(request + FILES["grey.png"][:10])
                time.sleep(0.5)
                process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
                connection.sendall(FILES["grey.png"][10:])
                assert b"200 OK" in connection.recv(4096)
            assert process.wait(30) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def line_with(text: str, stream) -> str:
    for line in stream:
        if text in line:
            return line
    raise AssertionError(f"no line with {text!r}")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--max-body", "huge"], 2, "'huge' is no size"),
        (["--timeout", "0"], 2, "timeout is 0"),
        (["--host", "no.such.host.invalid"], 1, "is not known"),
        (["--host", "192.0.2.1"], 1, "is no address of this machine"),
    ],
)
def test_wrong_options_are_refused_before_the_model_is_loaded(arguments, code, message) -> None:
    result = CliRunner().invoke(app, ["serve", "--model", "nowhere", *arguments])
    assert result.exit_code == code
    assert message in result.stderr


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CannotListen, match="is in use"):
            reserve("127.0.0.1", taken.getsockname()[1])


def test_without_the_extra_it_is_named(monkeypatch) -> None:
    monkeypatch.setattr("hf_kdmri.cli.serve._NEEDED", ("fastapi", "uvicorn_is_not_here"))
    result = CliRunner().invoke(app, ["serve", "--model", "x"])
    assert result.exit_code == 1 and "pip install 'hf_kdmri[serve]'" in result.stderr
