from __future__ import annotations

from pathlib import Path

import pytest

from hf_kdmri.hub import PublishError, find_model_folder, push_folder


@pytest.fixture
def folder(tmp_path) -> Path:
    student = tmp_path / "run" / "student"
    files = ["config.json", "README.md", "onnx/model.onnx"]
    left_behind = ["training_args.bin", "checkpoint-9/model.safetensors", ".env", ".cache/x", "onnx/.DS_Store"]
    left_behind += ["distillation_head.safetensors", "checkpoint-9/deep/er/rng.pth", "trainer_state.json"]
    for name in [*files, *left_behind]:
        (student / name).parent.mkdir(parents=True, exist_ok=True)
        (student / name).write_text("{}")
    (student / "model.safetensors").write_bytes(bytes(1000))
    return student


def test_a_dry_run_lists_what_would_be_sent_and_sends_nothing(folder, monkeypatch) -> None:
    monkeypatch.setattr("hf_kdmri.hub.publish.HfApi", lambda **_: pytest.fail("a dry run needs no Hub"))
    push = push_folder(folder, "jane/kdmri-student", dry_run=True)
    assert push.files == (("README.md", 2), ("config.json", 2), ("model.safetensors", 1000), ("onnx/model.onnx", 2))
    assert push.total_bytes == 1006
    assert push.url is None


def test_a_push_sends_what_the_dry_run_listed(folder, monkeypatch) -> None:
    from huggingface_hub import CommitInfo, HfApi

    sent: dict = {"commits": 0}

    def create_commit(self, repo_id, operations, **kwargs):
        sent["commits"] += 1
        sent.update(repo_id=repo_id, files=[operation.path_in_repo for operation in operations])
        return CommitInfo(
            commit_url="https://huggingface.co/jane/x/commit/1", commit_message="", commit_description="", oid="1"
        )

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: sent.update(kwargs))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    push = push_folder(folder, "jane/x", private=True)
    assert sent["files"] == [name for name, _ in push_folder(folder, "jane/x", dry_run=True).files]
    assert sent["commits"] == 1
    assert sent["private"] is True
    assert sent["exist_ok"] is True
    assert push.url.endswith("/commit/1")


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


@pytest.mark.parametrize(
    ("status", "way_out"), [(401, "hf auth login"), (403, "write access"), (503, "push again later")]
)
def test_the_hubs_refusal_becomes_a_way_out(folder, monkeypatch, status, way_out) -> None:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    def refuse(self, *_, **__):
        request = httpx2.Request("POST", "https://hub/api/repos/create")
        raise HfHubHTTPError("refused", response=httpx2.Response(status, request=request))

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(PublishError, match=rf"HTTP {status}.*{way_out}"):
        push_folder(folder, "jane/x")


def test_an_unreachable_hub_is_said_so(folder, monkeypatch) -> None:
    from huggingface_hub import HfApi

    monkeypatch.setattr("hf_kdmri.hub.publish.HfApi", lambda **_: HfApi(endpoint="http://127.0.0.1:9", token="hf_x"))
    with pytest.raises(PublishError, match=r"127.0.0.1:9 cannot be reached"):
        push_folder(folder, "jane/x")
