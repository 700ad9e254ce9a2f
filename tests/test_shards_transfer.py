"""Whole folders between an object store and a disk, against moto's S3 server."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store, open_anew
from tiny_triplets import write_tiny_triplets
from word_shards import write_words

from shards import store
from shards.files import TEMPORARY, read_json_lines
from shards.markers import marker_path, read_marker, rejects_path
from shards.stage import StageSpec
from shards.transfer import bring_step, is_sent, pull, send
from shards.triplets import read_triplets, triplet_paths


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as started:
        yield started


@pytest.fixture
def url(server: ObjectStore, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of the test's own; what it changes in the environment is put back."""
    monkeypatch.setenv("DREAMCACHE_CACHE", "")
    server.fault = lambda method, key: None
    server.requests.clear()
    return f"s3://bucket/{request.node.name}"


def local_bytes(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("done.json")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_folders_go_there_and_back(server: ObjectStore, url: str, tmp_path: Path) -> None:
    name, run = url.rpartition("/")[2], open_anew(url, tmp_path / "first")
    write_tiny_triplets(run)
    (run / "config.json").write_text("{}")
    training = run / "training" / "adapters"
    training.mkdir(parents=True)
    (training / "adapters.safetensors").write_bytes(b"weights")
    (run / "training" / "done.json").write_text(json.dumps({"recipe": {"version": 1}}))
    assert not is_sent(run, "training")
    send(run, "config.json", "training")
    assert is_sent(run, "training")
    put = [one.split()[1] for one in server.requests if one.startswith("PUT") and "/training/" in one]
    assert put == [f"{name}/training/adapters/adapters.safetensors", f"{name}/training/done.json"]

    (tmp_path / "pulled").mkdir()
    (tmp_path / "pulled" / f".pulled-from{TEMPORARY}1-0a").write_bytes(b"s3:/")  # of a pull that was killed
    pull(run, tmp_path / "pulled", lambda done, total: None)
    assert local_bytes(tmp_path / "pulled") == server.objects(name) | {".pulled-from": url.encode()}
    pulled = list(read_triplets(triplet_paths(tmp_path / "pulled")))
    assert len(pulled) == 20 and pulled == list(read_triplets(triplet_paths(run)))
    server.requests.clear()
    pull(run, tmp_path / "pulled", lambda done, total: None)
    assert server.requests == []  # all of it is there
    (tmp_path / "other").mkdir()
    for other, content in (("letter.txt", "dear"), (".pulled-from", "s3://elsewhere/run")):
        (tmp_path / "other" / other).write_text(content)
        with pytest.raises(ValueError, match=f"holds something that was not pulled from {url}"):
            pull(run, tmp_path / "other", lambda done, total: None)
        assert (tmp_path / "other" / other).read_text() == content

    run = open_anew(url, tmp_path / "second")
    bring_step(run / "training", {"version": 2})
    assert not (run / "training").exists()
    bring_step(run / "training", {"version": 1})
    assert (run / "training" / "adapters" / "adapters.safetensors").read_bytes() == b"weights"
    assert rejects_path(triplet_paths(run)[0]).name == "00000.rejects.jsonl"


def test_what_vouches_for_a_folder_goes_first_and_comes_last(server: ObjectStore, url: str, tmp_path: Path) -> None:
    name, run = url.rpartition("/")[2], open_anew(url, tmp_path / "first")
    (run / "training").mkdir()

    def write(content: str) -> None:
        (run / "training" / "weights").write_text(content)
        (run / "training" / "done.json").write_text(json.dumps({"recipe": {"version": 1}, "made": content}))

    write("first")
    send(run, "training")
    write("again, by the same recipe")
    server.requests.clear()
    send(run, "training")
    changing = [one for one in server.requests if one.startswith(("PUT", "DELETE"))]
    assert changing == [
        f"DELETE {name}/training/done.json", f"PUT {name}/training/weights", f"PUT {name}/training/done.json",
    ]  # fmt: skip
    run = open_anew(url, tmp_path / "second")
    server.requests.clear()
    bring_step(run / "training", {"version": 1})
    read = [one.rpartition("/")[2] for one in server.requests if one.startswith("GET")]
    assert read == ["done.json", "weights", "done.json"]
    server.requests.clear()
    pull(run, tmp_path / "copy", lambda done, total: None)
    read = [one.rpartition("/")[2] for one in server.requests if one.startswith("GET")]
    assert read == ["weights", "done.json"]


def test_a_copy_follows_its_run_and_vouches_for_nothing_meanwhile(
    server: ObjectStore, url: str, tmp_path: Path
) -> None:
    run, folder = open_anew(url, tmp_path / "first"), tmp_path / "copy"
    paths = [write_words(run, [word], index).path for index, word in enumerate(("abc", "def"))]
    pull(run, folder, lambda done, total: None)
    copies = [folder / path.relative_to(run) for path in paths]
    assert all(read_marker(copy) is not None for copy in copies)
    write_words(run, ["xyz"], spec=StageSpec("words", 2, {}))
    store.remove(marker_path(paths[1]))
    seen: set[bool] = set()

    def look(method: str, key: str) -> None:
        if key.endswith("00000.jsonl"):
            seen.add(marker_path(copies[0]).exists())

    server.fault = look
    pull(run, folder, lambda done, total: None)
    assert seen == {False} and read_marker(copies[1]) is None
    assert read_marker(copies[0]) == read_marker(paths[0])
    assert [record["word"] for record in read_json_lines(copies[0])] == ["xyz"]
