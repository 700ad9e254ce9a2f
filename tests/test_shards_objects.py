"""Objects of moto's S3 server: conditions, lost answers, wrong names, and stores of another kind."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import ObjectStore, object_store

from shards.objects import Objects
from shards.store import open_store


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    with object_store() as started:
        yield started


@pytest.fixture(autouse=True)
def no_fault(server: ObjectStore) -> None:
    server.fault = lambda method, key: None


@pytest.mark.parametrize("url", ["s3://bucket/conditions/run", "memory://conditions/run"])
def test_what_is_put_on_a_condition(server: ObjectStore, url: str) -> None:
    """On S3, and on a store that can only create on a condition, and has no ETags."""
    objects = Objects(url)
    objects.check_conditions()
    assert objects.listing() == {} and objects.state("a/b") is None and objects.read("a/b") is None
    assert objects.create("a/b", b"one") and not objects.create("a/b", b"two")
    seen = objects.state("a/b")
    assert seen is not None and seen.size == 3
    assert objects.replace("a/b", b"other", seen) and objects.read_all(["a/b", "a/c"]) == {"a/b": b"other"}
    if url.startswith("s3"):
        assert not objects.replace("a/b", b"late", seen) and not objects.replace("a/c", b"late", seen)
    assert objects.copy("a/b", "a/c") and not objects.copy("a/none", "a/d")
    assert sorted(objects.listing("a")) == ["a/b", "a/c"]
    objects.remove("a/b")
    objects.remove("a/b")
    assert list(objects.listing()) == ["a/c"]


def test_an_answer_that_is_lost_is_no_other_process(server: ObjectStore) -> None:
    """Each put is done and answered by 503 the first time: our own object is in the way of the second."""
    objects, lost = Objects("s3://bucket/lost"), list[str]()

    def fault(method: str, key: str) -> str | None:
        if method != "PUT" or len(lost) % 2:
            lost.extend([key] * (method == "PUT"))
            return None
        lost.append(key)
        return "lost"

    server.fault = fault
    assert objects.create("marker", b"ours")
    seen = objects.state("marker")
    assert seen is not None and objects.replace("marker", b"newer", seen) and len(lost) == 4
    assert not objects.create("marker", b"another's") and objects.read("marker") == b"newer"


def test_a_store_that_does_not_heed_conditions_is_refused(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DREAMCACHE_CACHE", str(tmp_path))
    server.fault = lambda method, key: "heedless"
    with pytest.raises(ValueError, match="^s3://bucket/heedless: this store does not heed If-None-Match"):
        open_store("s3://bucket/heedless", writing=True)
    assert server.objects("heedless") == {}


@pytest.mark.parametrize("fault", ["conflict", "throttled"])
def test_what_may_pass_is_asked_for_again(server: ObjectStore, fault: str) -> None:
    """Two conditional puts at once, which is no refusal of either, and a store that asks for fewer requests."""
    objects, asked = Objects(f"s3://bucket/{fault}"), list[str]()

    def once(method: str, key: str) -> str | None:
        asked.append(key)
        return fault if len(asked) == 1 else None

    server.fault = once
    assert objects.create("marker", b"ours") and len(asked) == 2 and server.get(f"{fault}/marker") == b"ours"


def test_wrong_names_are_one_line(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong, said in (("s3://nowhere/run", "no such bucket"), ("odd://a/b", "odd")):
        with pytest.raises(ValueError, match=rf"^{wrong}: .*{said}.*$"):
            Objects(wrong).listing()
    server.fault = lambda method, key: "forbidden"
    with pytest.raises(
        ValueError, match=r"^s3://bucket/run: access denied \(.*\): check the credentials and the bucket"
    ):
        Objects("s3://bucket/run").listing()
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(ValueError, match="^s3://bucket/run: no credentials"):
        Objects("s3://bucket/run").listing()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    with pytest.raises(ValueError, match=r"needs one more package: pip install 'dreamcache-pipeline\[s3\]'$"):
        Objects("s3://bucket/run")
