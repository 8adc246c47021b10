"""The server that the tests of publishing rest on: the real client finds what it expects of the Hub."""

from __future__ import annotations

import io
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    HfFileSystem,
    hf_hub_download,
    metadata_load,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub import Fault, Hub, User, cut, refuse, serve_hub
from tests.hub.client import use_hub

LARGE = bytes(range(256)) * 100


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    with serve_hub(hf_jane=User("jane", orgs=("lab",)), hf_reader=User("jane", role="read"), hf_joe=User("joe")) as hub:
        use_hub(monkeypatch, hub)
        yield hub


@pytest.fixture
def api(hub: Hub) -> HfApi:
    api = HfApi()
    api.create_repo("jane/m")
    operations = [
        CommitOperationAdd("README.md", b"---\nlicense: mit\ntags: [a]\n---\n# m\n"),
        CommitOperationAdd("sub/deep/model.safetensors", LARGE),
    ]
    api.create_commit("jane/m", operations, commit_message="first")
    return api


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return error.value.response.status_code


def test_whoami_and_its_refusal(hub):
    who = HfApi().whoami()
    assert who["name"] == "jane" and who["auth"]["accessToken"]["role"] == "write"
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(token="hf_wrong").whoami()
    assert status_of(error) == 401


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_repositories_are_created_once_found_and_deleted(hub, kind):
    api, more = HfApi(), {"space_sdk": "static"} if kind == "space" else {}
    url = api.create_repo("jane/x", repo_type=kind, private=True, **more)
    assert (url.repo_id, url.repo_type) == ("jane/x", kind)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo("jane/x", repo_type=kind, **more)
    assert status_of(error) == 409
    assert api.create_repo("jane/x", repo_type=kind, exist_ok=True, **more).repo_id == "jane/x"
    assert api.repo_info("jane/x", repo_type=kind).private
    assert not api.repo_exists("jane/x", repo_type=kind, token="hf_joe")
    api.update_repo_settings("jane/x", repo_type=kind, private=False)
    assert api.repo_exists("jane/x", repo_type=kind, token=False)
    api.delete_repo("jane/x", repo_type=kind)
    assert not api.repo_exists("jane/x", repo_type=kind)


def test_who_may_write(hub, api):
    assert api.create_repo("lab/y").repo_id == "lab/y"
    for token, repo_id, status in ((False, "jane/z", 401), ("hf_joe", "jane/z", 403), ("hf_reader", "jane/z", 403)):
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(token=token).create_repo(repo_id)
        assert status_of(error) == status
    with pytest.raises(HfHubHTTPError) as error:
        HfApi(token="hf_joe").upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id="jane/m")
    assert status_of(error) == 403


def test_info_tree_and_paths(hub, api):
    info = api.model_info("jane/m", files_metadata=True)
    assert info.card_data.license == "mit" and info.tags == ["a"]
    assert {s.rfilename: (s.size, bool(s.lfs)) for s in info.siblings}["sub/deep/model.safetensors"] == (25600, True)
    assert [(e.path, type(e).__name__) for e in api.list_repo_tree("jane/m")] == [
        ("sub", "RepoFolder"), (".gitattributes", "RepoFile"), ("README.md", "RepoFile")
    ]  # fmt: skip
    hub.page_size = 2
    assert len(list(api.list_repo_tree("jane/m", recursive=True, expand=True))) == 5
    (file, folder) = api.get_paths_info("jane/m", ["sub/deep/model.safetensors", "sub", "absent"])
    assert file.lfs.size == 25600 and folder.path == "sub"
    assert [commit.title for commit in api.list_repo_commits("jane/m")] == ["first", "initial commit"]
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("jane/absent")
    with pytest.raises(RevisionNotFoundError):
        api.model_info("jane/m", revision="absent")


def test_large_files_go_beside_git_once_and_without_the_token(hub, api):
    assert len(hub.uploads) == 1
    api.upload_file(path_or_fileobj=LARGE, path_in_repo="again.safetensors", repo_id="jane/m")
    assert len(hub.uploads) == 1 and hub.model("jane/m").files["again.safetensors"] == LARGE
    api.upload_file(
        path_or_fileobj=LARGE[1:], path_in_repo="picture.png", repo_id="jane/m"
    )  # binary, whatever its name
    assert len(hub.uploads) == 2 and hub.model("jane/m").head.files["picture.png"].lfs
    storage = f"{hub.storage_url}/storage/{'0' * 64}"
    assert httpx2.put(storage, content=b"x", headers={"Authorization": "Bearer hf_jane"}).status_code == 400
    assert httpx2.put(storage, content=b"x").status_code == 400  # not the content of that name


def test_commits_are_whole_and_know_their_parent(hub, api):
    parent = api.model_info("jane/m").sha
    second = api.create_commit("jane/m", [CommitOperationAdd("a", b"1")], commit_message="2", parent_commit=parent)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit("jane/m", [CommitOperationAdd("a", b"2")], commit_message="3", parent_commit=parent)
    assert status_of(error) == 412
    with pytest.raises(EntryNotFoundError):
        operations = [CommitOperationAdd("b", b"1"), CommitOperationDelete("absent")]
        api.create_commit("jane/m", operations, commit_message="4")
    assert api.model_info("jane/m").sha == second.oid and "b" not in hub.model("jane/m").files
    api.create_commit("jane/m", [CommitOperationDelete("sub/")], commit_message="5")
    assert sorted(hub.model("jane/m").files) == ["README.md", "a"]
    assert (
        api.create_commit("jane/m", [CommitOperationAdd("a", b"1")], commit_message="6").oid
        == hub.model("jane/m").head.oid
    )
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\ntags: {a: 1}\n---\n", path_in_repo="README.md", repo_id="jane/m")


def test_tags_branches_and_refs(hub, api):
    first = api.model_info("jane/m").sha
    api.create_tag("jane/m", tag="v1")
    api.create_branch("jane/m", branch="dev")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id="jane/m", revision="dev")
    refs = api.list_repo_refs("jane/m")
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert {ref.name for ref in refs.branches} == {"main", "dev"}
    assert not api.file_exists("jane/m", "a") and api.file_exists("jane/m", "a", revision="dev")
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag("jane/m", tag="v1", revision="dev")
    assert status_of(error) == 409
    api.delete_tag("jane/m", tag="v1")
    api.delete_branch("jane/m", branch="dev")
    assert [ref.name for ref in api.list_repo_refs("jane/m").branches] == ["main"]


def test_files_come_back_with_etag_commit_and_range(hub, api, tmp_path: Path):
    path = hf_hub_download("jane/m", "sub/deep/model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == LARGE
    entry = hub.model("jane/m").head.files["sub/deep/model.safetensors"]
    assert Path(path).resolve().name == entry.sha256 and hub.model("jane/m").head.oid in path
    card = hf_hub_download("jane/m", "README.md", cache_dir=tmp_path)
    assert Path(card).resolve().name == hub.model("jane/m").head.files["README.md"].blob_id
    assert metadata_load(card) == {"license": "mit", "tags": ["a"]}
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("jane/m", "absent", cache_dir=tmp_path)
    url = f"{hub.url}/jane/m/resolve/main/sub/deep/model.safetensors"
    part = httpx2.get(url, headers={"Range": "bytes=10-19"}, follow_redirects=True)
    assert (part.status_code, part.content) == (206, LARGE[10:20])
    with HfFileSystem(endpoint=hub.url, token="hf_jane").open("jane/m/sub/deep/model.safetensors") as file:
        file.seek(25000)
        assert file.read() == LARGE[25000:]


def test_an_interrupted_download_goes_on(hub, api, tmp_path: Path):
    hub.faults.append(Fault("GET /cdn/", cut()))
    assert Path(hf_hub_download("jane/m", "sub/deep/model.safetensors", cache_dir=tmp_path)).read_bytes() == LARGE


def test_collections(hub, api):
    collection = api.create_collection("All of it", namespace="jane", description="d")
    assert api.create_collection("All of it", namespace="jane", exists_ok=True).slug == collection.slug
    api.add_collection_item(collection.slug, "jane/m", "model", note="n")
    api.add_collection_item(collection.slug, "jane/m", "model", exists_ok=True)
    assert [(i.item_id, i.item_type, i.note) for i in api.get_collection(collection.slug).items] == [
        ("jane/m", "model", "n")
    ]
    assert [found.slug for found in api.list_collections(owner="jane")] == [collection.slug]
    with pytest.raises(HfHubHTTPError) as error:
        api.add_collection_item(collection.slug, "jane/absent", "model")
    assert status_of(error) == 404


def test_faults_strike_where_they_are_told_to(hub, api):
    hub.faults.append(Fault("GET /api/models/jane/m$", refuse(500), skip=1))
    seen = []
    for _ in range(3):
        try:
            api.model_info("jane/m")
            seen.append(200)
        except HfHubHTTPError as error:
            seen.append(error.response.status_code)
    assert seen == [200, 500, 200]
    assert hub.requests[-2:] == ["GET /api/models/jane/m 500", "GET /api/models/jane/m 200"]


def test_a_body_of_unknown_length_is_read(hub):
    data = iter([b"ab", b"c"])
    name = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert httpx2.put(f"{hub.storage_url}/storage/{name}", content=data).status_code == 200
    assert hub.objects[name] == io.BytesIO(b"abc").getvalue()
