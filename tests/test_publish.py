"""A model folder on its way to the Hub: the real client against a server that can fail."""

from __future__ import annotations

import pickle
import re
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hf_kdmri.hub import CardError, PublishError, find_model_folder, hub_errors, push_folder
from tests.hub import Fault, Hub, cut, cut_after, refuse, serve_hub, stall, together
from tests.hub.client import ROOT, hub_environment, use_hub

COMMIT = "POST /api/models/jane/x/commit"


@pytest.fixture
def folder(tmp_path) -> Path:
    student = tmp_path / "run" / "student"
    files = ["config.json", "README.md", "onnx/model.onnx"]
    left_behind = ["training_args.bin", "checkpoint-9/model.safetensors", ".env", ".cache/x", "onnx/.DS_Store"]
    left_behind += ["distillation_head.safetensors", "checkpoint-9/deep/er/rng.pth", "trainer_state.json"]
    for name in [*files, *left_behind]:
        (student / name).parent.mkdir(parents=True, exist_ok=True)
        (student / name).write_text("{}")
    (student / "README.md").write_text("---\npipeline_tag: image-classification\nlibrary_name: timm\n---\n")
    (student / "model.safetensors").write_bytes(bytes(1000))
    return student


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    with serve_hub() as hub:
        hub.slept = use_hub(monkeypatch, hub)
        monkeypatch.setattr(hub_errors.time, "sleep", hub.slept.append)
        yield hub


def writes(hub: Hub) -> list[str]:
    return [line for line in hub.requests if not line.startswith(("GET", "HEAD"))]


def test_a_dry_run_lists_what_would_be_sent_and_sends_nothing(folder, hub) -> None:
    push = push_folder(folder, "jane/kdmri-student", dry_run=True)
    assert push.files == (("README.md", 62), ("config.json", 2), ("model.safetensors", 1000), ("onnx/model.onnx", 2))
    assert push.total_bytes == 1066
    assert push.url is None and push.sent is None
    assert hub.requests == []


def test_a_card_that_breaks_the_rules_is_not_sent(folder, hub) -> None:
    (folder / "README.md").write_text("---\npipeline_tag: text-generation\nlibrary_name: timm\n---\n")
    for dry_run in (True, False):
        with pytest.raises(CardError, match="pipeline_tag is 'text-generation'"):
            push_folder(folder, "jane/x", dry_run=dry_run)
    assert hub.requests == []


def test_a_push_sends_what_the_dry_run_listed_in_one_commit(folder, hub) -> None:
    push = push_folder(folder, "jane/x", private=True)
    repository = hub.model("jane/x")
    assert sorted(repository.files) == [name for name, _ in push_folder(folder, "jane/x", dry_run=True).files]
    assert repository.files["model.safetensors"] == bytes(1000)
    assert repository.titles == ["Upload the distilled student", "initial commit"]
    assert repository.private
    assert push.url == f"{hub.url}/jane/x/commit/{repository.head.oid}"


def test_a_repeated_push_commits_nothing_and_a_changed_file_goes_alone(folder, hub) -> None:
    first = push_folder(folder, "jane/x")
    sent = len(hub.uploads)
    again = push_folder(folder, "jane/x")
    assert again.sent == () and again.url == first.url
    assert len(hub.model("jane/x").commits) == 2 and len(hub.uploads) == sent
    (folder / "config.json").write_text('{"a": 1}')
    assert push_folder(folder, "jane/x").sent == ("config.json",)
    assert hub.model("jane/x").files["config.json"] == b'{"a": 1}' and len(hub.uploads) == sent


def test_files_of_others_stay_in_the_repository(folder, hub) -> None:
    push_folder(folder, "jane/x")
    HfApi().upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="jane/x")
    push_folder(folder, "jane/x")
    assert hub.model("jane/x").files["notes.txt"] == b"mine"


def test_a_tag_is_set_once_and_never_moved(folder, hub) -> None:
    push_folder(folder, "jane/x", tag="v1.0")
    assert hub.model("jane/x").tags == {"v1.0": hub.model("jane/x").head.oid}
    push_folder(folder, "jane/x", tag="v1.0")
    (folder / "config.json").write_text('{"a": 1}')
    before = len(writes(hub))
    with pytest.raises(PublishError, match=r"has a tag v1.0 already.*choose another tag"):
        push_folder(folder, "jane/x", tag="v1.0")
    assert len(writes(hub)) == before  # refused before anything was sent
    push_folder(folder, "jane/x", tag="v1.1")
    with pytest.raises(PublishError, match=r"has a tag v1\.0 already"):  # nothing to send, but the head has moved on
        push_folder(folder, "jane/x", tag="v1.0")
    assert len(set(hub.model("jane/x").tags.values())) == 2


def test_a_tag_that_another_push_sets_meanwhile_is_told(folder, hub) -> None:
    push_folder(folder, "jane/x")
    first = hub.model("jane/x").head.oid
    (folder / "config.json").write_text('{"a": 1}')

    def tagged_by_another(hub, request, handle):
        hub.model("jane/x").tags["v1.0"] = first
        return handle()

    hub.faults.append(Fault("POST .*/tag/", tagged_by_another))
    with pytest.raises(PublishError, match=f"another push set the tag v1.0 of jane/x on commit {first[:10]}"):
        push_folder(folder, "jane/x", tag="v1.0")


def test_private_is_never_public_in_silence(folder, hub) -> None:
    push_folder(folder, "jane/x")
    with pytest.raises(PublishError, match=r"jane/x is public already.*--private makes only new"):
        push_folder(folder, "jane/x", private=True)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_unfinished_folder_is_refused_by_name(folder, missing) -> None:
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing} missing"):
        push_folder(folder, "jane/x", dry_run=True)


@pytest.mark.parametrize("repo_id", ["student", "a/b/c", "jane/", "jane/my model", "../x"])
def test_bad_repository_names_are_refused(folder, repo_id) -> None:
    with pytest.raises(ValueError, match="is no repository name"):
        push_folder(folder, repo_id, dry_run=True)


def test_a_run_folder_leads_to_its_student(folder, tmp_path) -> None:
    assert find_model_folder(folder.parent) == folder
    assert find_model_folder(folder) == folder
    with pytest.raises(FileNotFoundError, match=r"config.json and model.safetensors missing"):
        find_model_folder(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        find_model_folder(tmp_path / "absent")


def test_pickles_stay_behind_whatever_they_are_called(folder, hub, caplog) -> None:
    (folder / "labels.txt").write_bytes(pickle.dumps({"a": 1}))
    with zipfile.ZipFile(folder / "weights", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    with zipfile.ZipFile(folder / "figures.zip", "w") as archive:
        archive.writestr("figure.png", b"x")
    push_folder(folder, "jane/x")
    assert {"labels.txt", "weights"}.isdisjoint(hub.model("jane/x").files)
    assert "figures.zip" in hub.model("jane/x").files
    assert "labels.txt is a pickle" in caplog.text


@pytest.mark.parametrize("secret", ["hf_jane", "hf_" + "A1b2" * 9])
def test_a_file_with_a_token_stops_the_push(folder, hub, secret) -> None:
    (folder / "notes.md").write_text(f"login with {secret}")
    with pytest.raises(PublishError, match=r"notes.md holds a token") as error:
        push_folder(folder, "jane/x")
    assert secret not in str(error.value) and hub.requests == []


def test_without_a_token_nothing_begins(folder, monkeypatch) -> None:
    with serve_hub() as hub:
        use_hub(monkeypatch, hub, token=None)
        with pytest.raises(PublishError, match=r"not logged in; run `hf auth login`"):
            push_folder(folder, "jane/x")
        assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "repo_id", "message"),
    [
        ("hf_unknown", "jane/x", r"HTTP 401.*hf auth login"),
        ("hf_reader", "jane/x", r"HTTP 403.*write access"),
        ("hf_jane", "joe/x", r"HTTP 403.*under your own user or group"),
    ],
)
def test_who_may_not_write_is_told_what_to_do(folder, hub, monkeypatch, token, repo_id, message) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match=f"(?s){message}") as error:
        push_folder(folder, repo_id)
    assert token not in str(error.value)
    assert not hub.repositories


REFUSALS = [
    ("POST /api/models/jane/x/preupload", 401, "hf auth login"),
    ("POST /api/models/jane/x/preupload", 403, "write access"),
    ("POST /jane/x.git/info/lfs/objects/batch", 403, "write access"),
    ("PUT /storage/", 403, "write access"),
    ("PUT /storage/", 413, "too large"),
    ("POST /jane/x.git/info/lfs/objects/verify", 500, "push again later"),
    (COMMIT, 409, "another push"),
    (COMMIT, 412, "another push"),
    (COMMIT, 413, "too large"),
    (COMMIT, 500, "push again later"),
    ("POST /api/models/jane/x/tag/", 403, "write access"),
]


@pytest.mark.parametrize(("where", "status", "way_out"), REFUSALS)
def test_a_refusal_says_what_is_there_and_the_next_push_goes_on(folder, hub, where, status, way_out) -> None:
    hub.faults.append(Fault(where, refuse(status, "says hf_jane"), times=100))
    with pytest.raises(PublishError, match=rf"(?s)HTTP {status}.*{way_out}.*So far:.*repository created") as error:
        push_folder(folder, "jane/x", tag="v1")
    said = str(error.value)
    assert "hf_jane" not in said and "secret-of-the-storage" not in said.split("So far")[1]
    committed = "tag" in where
    assert (("uploaded, not in a commit yet: model.safetensors, onnx/model.onnx" in said) or committed) == (
        where == COMMIT or committed
    )
    assert ("complete, commit" in said) == committed
    assert len(hub.model("jane/x").commits) == 1 + committed
    hub.faults.clear()
    arrived = len(hub.uploads)
    push = push_folder(folder, "jane/x", tag="v1")
    assert sorted(hub.model("jane/x").files) == sorted(name for name, _ in push.files)
    assert len(hub.model("jane/x").commits) == 2
    assert hub.model("jane/x").tags == {"v1": hub.model("jane/x").head.oid}
    if where == COMMIT or committed:
        assert len(hub.uploads) == arrived  # large files are not sent again
    assert len(hub.uploads) == len(set(hub.uploads)) or "verify" in where


def test_a_signed_address_is_not_repeated(folder, hub) -> None:
    hub.faults.append(Fault("PUT /storage/", refuse(403), times=100))
    with pytest.raises(PublishError) as error:
        push_folder(folder, "jane/x")
    assert "secret-of-the-storage" not in str(error.value)


@pytest.mark.parametrize("where", ["POST /api/repos/create", "GET /api/models/jane/x/refs", COMMIT, "PUT /storage/"])
def test_429_is_waited_out(folder, hub, where) -> None:
    if "refs" in where:
        push_folder(folder, "jane/x")
        (folder / "config.json").write_text('{"a": 1}')
    hub.faults.append(Fault(where, refuse(429, Retry_After="7"), times=2))
    push_folder(folder, "jane/x")
    assert [seconds for seconds in hub.slept if seconds in (7, 8)] != []
    assert len(hub.model("jane/x").commits) == 2 + ("refs" in where)


def test_a_long_pause_ends_the_push(folder, hub) -> None:
    hub.faults.append(Fault(COMMIT, refuse(429, Retry_After="3600")))
    with pytest.raises(PublishError, match=r"(?s)HTTP 429.*wait a few minutes.*uploaded, not in a commit yet"):
        push_folder(folder, "jane/x")
    assert hub.slept == []


@pytest.mark.parametrize("where", ["POST /api/models/jane/x/preupload", "PUT /storage/", "POST .*verify"])
@pytest.mark.parametrize("fault", [cut(), refuse(500), refuse(503)])
def test_what_passes_is_tried_again(folder, hub, where, fault) -> None:
    hub.faults.append(Fault(where, fault, times=2))
    push_folder(folder, "jane/x")
    assert len(hub.model("jane/x").files) == 4 and len(hub.model("jane/x").commits) == 2


@pytest.mark.slow
def test_a_connection_cut_at_every_request_leaves_nothing_half_done(folder, hub) -> None:
    push_folder(folder, "jane/count", tag="v1")
    requests = len(hub.requests)
    for place in range(requests):
        hub.objects.clear()  # so that this push, too, sends them
        hub.faults[:] = [Fault(".", cut(), skip=place, times=100)]
        with pytest.raises(PublishError, match=r"cannot be reached"):
            push_folder(folder, f"jane/x{place}", tag="v1")
        repository = hub.repositories.get(("model", f"jane/x{place}"))
        assert (
            repository is None
            or repository.files == {}
            or sorted(repository.files) == sorted(hub.model("jane/count").files)
        )
        hub.faults.clear()
        push_folder(folder, f"jane/x{place}", tag="v1")
        repository = hub.model(f"jane/x{place}")
        assert repository.files == hub.model("jane/count").files and len(repository.commits) == 2
        assert repository.tags == {"v1": repository.head.oid}


def test_a_commit_whose_answer_was_lost_is_found(folder, hub) -> None:
    hub.faults.append(Fault(COMMIT, cut_after()))
    push = push_folder(folder, "jane/x", tag="v1")
    assert push.url.endswith(hub.model("jane/x").head.oid) and len(hub.model("jane/x").commits) == 2
    assert hub.model("jane/x").tags["v1"] == hub.model("jane/x").head.oid


def test_a_silent_hub_ends_in_an_error(folder, hub) -> None:
    hub.faults.append(Fault(COMMIT, stall()))
    with pytest.raises(PublishError, match=r"(?s)cannot be reached \(timed out\).*uploaded, not in a commit yet"):
        push_folder(folder, "jane/x", timeout=1)
    push_folder(folder, "jane/x")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own answer to Ctrl-C, which a process that a shell started in the background does not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_push_says_what_is_there(folder, hub) -> None:
    def interrupt(hub, request, handle):
        # A real signal, which breaks off the wait for an answer; `_thread.interrupt_main` is only seen after it.
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        hub.closing.wait(30)
        return handle()

    hub.faults.append(Fault(COMMIT, interrupt))
    with pytest.raises(PublishError, match=r"(?s)interrupted.*So far:.*uploaded, not in a commit yet"):
        push_folder(folder, "jane/x")


def test_another_commit_meanwhile_wins(folder, hub) -> None:
    push_folder(folder, "jane/x")
    (folder / "config.json").write_text('{"a": 1}')

    def overtake(hub, request, handle):
        repository = hub.model("jane/x")
        repository.commit("by another", repository.head.files)
        return handle()

    hub.faults.append(Fault(COMMIT, overtake))
    with pytest.raises(PublishError, match=r"HTTP 412.*another push to this repository won"):
        push_folder(folder, "jane/x")
    assert hub.model("jane/x").titles[0] == "by another"


@pytest.mark.slow
@pytest.mark.two_process
def test_of_two_processes_one_wins(folder, hub, tmp_path) -> None:
    hub.faults.append(Fault(COMMIT, together(threading.Barrier(2)), times=2))
    script = "import sys; from hf_kdmri.cli import app; app()"
    started = []
    for name in ("a", "b"):
        mine = tmp_path / name
        mine.mkdir()
        for file in ("config.json", "model.safetensors"):
            (mine / file).write_bytes((folder / file).read_bytes())
        (mine / "who.txt").write_text(name)
        command = [sys.executable, "-c", script, "push", str(mine), "--to", "jane/x"]
        environment = hub_environment(hub, tmp_path / f"home-{name}")
        started.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    ends = [(*process.communicate(timeout=240), process.returncode) for process in started]
    assert sorted(code for _, _, code in ends) == [0, 1], ends
    winner = next(place for place, end in enumerate(ends) if end[2] == 0)
    assert hub.model("jane/x").files["who.txt"].decode() == "ab"[winner]
    assert len(hub.model("jane/x").commits) == 2
    lost = ends[1 - winner][1]
    assert re.search(r"HTTP 412\): another push to this repository won meanwhile", lost) and "Traceback" not in lost


def test_an_unreachable_hub_is_said_so(folder, monkeypatch, hub) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(PublishError, match=r"127.0.0.1:9 cannot be reached"):
        push_folder(folder, "jane/x")


def test_offline_mode_is_said_so(folder, monkeypatch, hub) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PublishError, match=r"HF_HUB_OFFLINE"):
        push_folder(folder, "jane/x")
    assert hub.requests == []
