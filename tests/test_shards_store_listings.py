"""A process whose listing of the store falls into another's publication finds the shard whole."""

import threading
from pathlib import Path

import pytest
from word_shards import write_words

from shards import files, store
from shards.files import TEMPORARY
from shards.markers import marker_path
from shards.stage import StageSpec, plan_shard
from shards.store import Store, bring, open_store
from shards.transfer import copy_here, pull

WORDS = StageSpec("words", 1, {"letters": 3})


def in_the_midst(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, writing: bool, other_copies_first: bool
) -> tuple[Store, list[str]]:
    """A store opened by another process when a shard's marker was put and its files were not copied yet.

    Returns it and the objects that are there when the shard is published. One that writes copies them too: before the
    publisher, or when the publisher has cleared the temporary ones.
    """
    monkeypatch.setattr(store, "_stores", {})
    monkeypatch.setenv("DREAMCACHE_CACHE", str(tmp_path / "first"))
    run, others, at_copy, go = open_store(url, True), [], threading.Event(), threading.Event()

    def look() -> None:
        mirror = tmp_path / "second" / "run"
        mirror.mkdir(parents=True)
        other = Store(url, mirror)
        other.writing = writing
        copy = other.objects.copy

        def late(source: str, target: str) -> bool:
            at_copy.set()
            assert other_copies_first or go.wait(60)
            return copy(source, target)

        other.objects.copy = late  # type: ignore[method-assign]
        others.append(other)
        other.look()
        at_copy.set()

    looking = threading.Thread(target=look)

    def reached(point: str) -> None:
        if point == "words/00000 published":
            looking.start()
            assert at_copy.wait(60)
            if other_copies_first:
                looking.join()

    monkeypatch.setattr(files, "reached", reached)
    write_words(run, ["abc"], spec=WORDS)
    go.set()
    looking.join()
    (other,) = others
    store._stores.clear()
    store._stores[other.mirror] = other
    return other, sorted(other.objects.listing())


@pytest.mark.parametrize(("writing", "first"), [(False, True), (True, True), (True, False)])
def test_a_shard_seen_while_it_is_published_is_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, writing: bool, first: bool
) -> None:
    url = f"memory://bucket/{tmp_path.name}-{writing}-{first}"
    other, there = in_the_midst(url, monkeypatch, tmp_path, writing, first)
    assert len(there) == 3 and not any(TEMPORARY in key for key in there)
    path = plan_shard(other.mirror, WORDS, 0).path
    if writing:
        assert other.key(path) in other.listed, "what it copied, or came too late to copy, is known to be there"
    else:
        assert any(TEMPORARY in key for key in other.listed), "the listing is of before the copies"
    bring([path])
    assert path.read_text().count("abc") == 1
    assert sorted(other.objects.listing()) == there, "no marker was withdrawn"
    pull(other.mirror, tmp_path / "pulled", lambda done, total: None)
    assert (tmp_path / "pulled" / "words" / "00000.jsonl").read_bytes() == path.read_bytes()
    path.unlink()
    monkeypatch.setattr(other, "look", lambda: None)  # as if the publication had ended just after a look
    copy_here(other.mirror, lambda done, total: None)
    assert path.is_file() and marker_path(path).is_file()
