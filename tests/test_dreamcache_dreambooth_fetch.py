"""DreamBooth's archive from a server of this machine: whole, broken off, killed, altered, hostile, or not there."""

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from in_process import run_command

from dreamcache.dreambooth import cases, fetch
from shards.processes import free_port


class Server:
    """Serves `archive`: in parts or whole, `cut` bytes of it before it breaks off, so many times, or a status alone."""

    def __init__(self) -> None:
        self.archive, self.ranges, self.cut, self.breaks, self.status, self.pause = b"", True, 0, 0, 200, 0.0
        self.asked: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers["Range"]
                server.asked.append(asked)
                start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.ranges else 0
                if server.status != 200 or start >= len(server.archive):
                    return self.send_error(416 if server.status == 200 else server.status)
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(server.archive) - 1}/{len(server.archive)}")
                self.send_header("Content-Length", str(len(server.archive) - start))
                self.end_headers()
                rest = server.archive[start:]
                if server.breaks:
                    server.breaks -= 1
                    rest = rest[: server.cut]
                for place in range(0, len(rest), 1000):
                    self.wfile.write(rest[place : place + 1000])
                    time.sleep(server.pause)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/dreambooth.tar.gz"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


PROMPTS = """Classes
subject_name,class
cup,cup
cat,cat
Prompts
Object Prompts
prompt_list = [
'a {0} {1} in the snow'.format(unique_token, class_token)
]
Live Subject Prompts
prompt_list = [
'a {0} {1} in a hat'.format(unique_token, class_token)
]
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The dataset's files by name: a small benchmark whose table and digests stand in for DreamBooth's own."""
    folder = tmp_path / "packaged"
    folder.mkdir()
    # Bytes that do not pack, as photographs do not.
    found = {f"{subject}/{number:02d}.jpg": os.urandom(3000) for subject in ("cup", "cat") for number in range(6)}
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in found.items())
    for name in cases.PACKAGED_DIGESTS.values():
        (folder / name).write_text(lines)
    subjects = [{"name": name, "class": name, "live": name == "cat", "reference": "01.jpg"} for name in ("cup", "cat")]
    (folder / "subjects.json").write_text(json.dumps({"benchmark": "tiny", "subjects": subjects}))
    monkeypatch.setattr(cases, "PACKAGED", folder)
    monkeypatch.setattr(fetch, "PACKAGED", folder)
    return found | {"prompts_and_classes.txt": PROMPTS.encode(), "references_and_licenses.txt": b"who made what"}


def archive_of(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    """An archive as GitHub packs a repository: a commit's name, then all below one folder."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "c" * 40}) as tar:
        for member in more:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
        for name, content in {"../README.md": b"read me", **files}.items():
            member = tarfile.TarInfo(os.path.normpath(f"dreambooth-main/dataset/{name}"))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, link, size
    return member


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_dataset_is_there_whole_and_nothing_beside_it(server: Server, files: dict[str, bytes], tmp_path: Path):
    server.archive = archive_of(files)
    folder = tmp_path / "here" / "dataset"
    benchmark = fetch.fetch_dreambooth(folder, server.address)
    assert (len(benchmark.subjects), benchmark.digests) == (2, "original")
    assert contents(folder.parent) == {f"dataset/{name}": content for name, content in files.items()}
    assert fetch.fetch_dreambooth(folder, server.address).images == benchmark.images and len(server.asked) == 1
    (folder / "cat/00.jpg").write_bytes(b"altered")
    with pytest.raises(ValueError, match="1 of 12 images altered"):
        fetch.fetch_dreambooth(folder, server.address)


@pytest.mark.parametrize("ranges", [True, False])
def test_an_archive_that_breaks_off_is_gone_on_with(server: Server, files, tmp_path: Path, ranges: bool):
    server.archive, server.ranges, server.cut, server.breaks = archive_of(files), ranges, 5000, 4
    with pytest.raises(ConnectionError, match="could not be fetched .* start again when it can be reached"):
        fetch.fetch_dreambooth(tmp_path / "dataset", server.address)
    assert not (tmp_path / "dataset").exists() and len(server.asked) == fetch.ATTEMPTS
    fetch.fetch_dreambooth(tmp_path / "dataset", server.address)
    assert contents(tmp_path / "dataset") == files
    if ranges:
        assert server.asked == [None, *(f"bytes={5000 * part}-" for part in range(1, 5))]


def test_what_an_earlier_fetch_has_may_be_whole_or_of_another_archive(server: Server, files, tmp_path: Path):
    server.archive = archive_of(files)
    partial = tmp_path / ".dataset.archive.partial"
    partial.write_bytes(server.archive)  # killed before it was unpacked
    (tmp_path / ".dataset.partial" / "cat").mkdir(parents=True)
    fetch.fetch_dreambooth(tmp_path / "dataset", server.address)
    assert server.asked == [f"bytes={len(server.archive)}-"]
    (tmp_path / ".again.archive.partial").write_bytes(b"of another archive")
    with pytest.raises(ValueError, match="is not DreamBooth's dataset"):
        fetch.fetch_dreambooth(tmp_path / "again", server.address)
    fetch.fetch_dreambooth(tmp_path / "again", server.address)
    assert contents(tmp_path / "again") == files


def test_killed_by_sigkill_it_goes_on(server: Server, files: dict[str, bytes], tmp_path: Path):
    server.archive, server.pause = archive_of(files), 0.05
    folder = tmp_path / "dataset"
    code = (
        "import sys; from pathlib import Path; from dreamcache.dreambooth import cases, fetch\n"
        "cases.PACKAGED = fetch.PACKAGED = Path(sys.argv[1])\n"
        "fetch.fetch_dreambooth(sys.argv[2], sys.argv[3])"
    )
    command = [sys.executable, "-c", code, str(cases.PACKAGED), str(folder), server.address]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    partial = tmp_path / ".dataset.archive.partial"
    deadline = time.monotonic() + 60
    while not (partial.exists() and partial.stat().st_size > 8000):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not folder.exists() and 0 < partial.stat().st_size < len(server.archive)
    server.pause = 0.0
    fetch.fetch_dreambooth(folder, server.address)
    assert contents(folder) == files and server.asked[-1] != "bytes=0-"


DATASET = "dreambooth-main/dataset"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda files: archive_of({**files, "cat/00.jpg": b"another"}), r"cat/00.jpg is altered \(sha256 "),
        (lambda files: archive_of(dict(list(files.items())[2:])), "2 of 14 files missing: cup/00.jpg, cup/01.jpg"),
        (lambda files: archive_of(files, entry(f"{DATASET}/cat/00.jpg", tarfile.SYMTYPE, "/etc/hostname")), "no plain"),
        (lambda files: archive_of(files, entry(f"{DATASET}/cat/00.jpg", tarfile.LNKTYPE, "x")), "cat/00.jpg is no pla"),
        (
            lambda files: archive_of({**files, "prompts_and_classes.txt": b"Classes\n"}),
            "prompts_and_classes.txt: needs",
        ),
        (lambda files: archive_of(files)[:-3000], "ended before"),
        (lambda files: gzip.compress(gzip.decompress(archive_of(files))[:9000]), "unexpected end of data"),
        (lambda files: b"<html>please log in</html>", "Not a gzipped file"),
        (lambda files: gzip.compress(b"no tar" * 1000), "invalid header|truncated header|bad checksum"),
        (lambda files: b"\n", "Not a gzipped file"),
    ],
    ids=["altered", "missing", "link", "hard link", "prompts", "torn", "torn tar", "page", "no tar", "nothing"],
)
def test_what_is_not_the_dataset_is_refused_in_one_line(
    server: Server, files, tmp_path: Path, spoil: Callable[[dict[str, bytes]], bytes], message: str
):
    server.archive = spoil(files)
    with pytest.raises(ValueError, match=message) as refused:
        fetch.fetch_dreambooth(tmp_path / "here" / "dataset", server.address)
    assert str(refused.value).startswith(f"{server.address} is not DreamBooth's dataset: ")
    assert "\n" not in str(refused.value) and contents(tmp_path / "here") == {}
    server.archive = archive_of(files)
    fetch.fetch_dreambooth(tmp_path / "here" / "dataset", server.address)  # nothing is left that is in the way


def test_names_that_lead_out_of_the_folder_name_nothing(server: Server, files: dict[str, bytes], tmp_path: Path):
    names = ("/tmp/x", "../../escaped", f"{DATASET}/../../escaped", f"{DATASET}/cat/../../../escaped", "a/dataset//x")
    links = (entry(f"{DATASET}/dog", tarfile.SYMTYPE, str(tmp_path)), entry(f"{DATASET}/dog/escaped", size=3))
    server.archive = archive_of(files, *(entry(name, size=3) for name in names), *links)
    before = set(tmp_path.rglob("*"))
    fetch.fetch_dreambooth(tmp_path / "a" / "b" / "dataset", server.address)
    assert contents(tmp_path / "a" / "b" / "dataset") == files
    assert {path for path in tmp_path.rglob("*") if "a" not in path.relative_to(tmp_path).parts[:1]} == before


def test_neither_disk_nor_memory_is_filled(server: Server, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetch, "MAX_BYTES", 2**20)
    server.archive = archive_of(files, entry("dreambooth-main/zeros", size=2**21))
    assert len(server.archive) < 2**18
    with pytest.raises(ValueError, match="it unpacks to more than 1 MiB"):
        fetch.fetch_dreambooth(tmp_path / "dataset", server.address)
    server.archive = os.urandom(2**21)
    with pytest.raises(ValueError, match="it is larger than 1 MiB"):
        fetch.fetch_dreambooth(tmp_path / "dataset", server.address)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packaged"]
    sparse = io.BytesIO()
    with tarfile.open(fileobj=sparse, mode="w:gz") as tar:
        hole = entry(f"{DATASET}/cat/00.jpg")
        hole.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**50), "GNU.sparse.name": hole.name}
        tar.addfile(hole)
    server.archive = sparse.getvalue()
    with pytest.raises(ValueError, match=r"cat/00.jpg is no plain file"):
        fetch.fetch_dreambooth(tmp_path / "dataset", server.address)


def test_the_command(server: Server, files, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]):
    def say(*words: str) -> tuple[object, str]:
        heard = run_command(capsys, words)
        assert len(heard.err.splitlines()) == (1 if heard.code else 0), heard.err
        return heard.code, heard.err or heard.out

    server.archive = archive_of(files)
    folder = str(tmp_path / "dataset")
    monkeypatch.setattr(fetch, "ADDRESS", f"http://127.0.0.1:{free_port()}/nobody-listens")
    code, said = say("fetch-dreambooth", folder)
    assert code == 1 and "could not be fetched ([Errno 111] Connection refused)" in said and "--dataset" in said
    monkeypatch.setattr(fetch, "ADDRESS", server.address)
    server.status = 404
    code, said = say("fetch-dreambooth", folder)
    assert code == 1 and "could not be fetched (Client error '404 Not Found'" in said
    server.status = 200
    code, said = say("fetch-dreambooth", folder)
    assert code == 0 and said.endswith(f"{folder}: 2 subjects, 12 original images, unaltered\n")
    code, said = say("evaluate", "--calibrate", "--dataset", str(tmp_path / "nowhere"), "--run", str(tmp_path / "run"))
    assert code == 1 and "nowhere: no such folder" in said and "dreamcache fetch-dreambooth" in said
