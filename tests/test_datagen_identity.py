"""Gated, absent and incomplete weights: one line with the page, the token and the way by a local folder."""

import errno
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from datagen.identity import checkpoint_file, loading, model_identity

ROOT = Path(__file__).resolve().parents[1]


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a client sees of a gated model, whose files it refuses, of one whose newest commit is
    another at each question, of one while the Hub is down, and of one that is not there."""

    questions = itertools.count()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/owner/gated"):
            status, code, body = 200, "", json.dumps({"id": "owner/gated", "sha": "0" * 40}).encode()
        elif self.path.startswith("/api/models/owner/moving"):
            body = json.dumps({"id": "owner/moving", "sha": f"{next(self.questions):040}"}).encode()
            status, code = 200, ""
        elif self.path.startswith("/api/models/owner/busy"):
            status, code, body = 503, "", b"{}"
        elif self.path.startswith("/owner/gated"):
            status, code, body = 403, "GatedRepo", b"{}"
        else:
            status, code, body = 404, "RepoNotFound", b"{}"
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET


@pytest.fixture
def hub() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def asked(code: str, home: Path, hub: str, offline: str = "0") -> str:
    """What a new process says that evaluates an expression about models on this Hub, or the error's class and text."""
    code = f"from datagen.identity import checkpoint_file, loading, model_identity\ntry: print({code})\n"
    code += "except OSError as error: print(type(error).__name__, error)"
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": offline, "HF_HOME": str(home), "NO_PROXY": "*"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    return line


@pytest.mark.parametrize("name", ["gated", "absent"])
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(tmp_path: Path, hub: str, name: str) -> None:
    line = asked(f"checkpoint_file('owner/{name}', 'weights.pth', 'masks.box_model')", tmp_path, hub)
    assert line.startswith("FileNotFoundError masks.box_model: ")
    for advice in (f"https://huggingface.co/owner/{name}", "HF_TOKEN", "set masks.box_model to the local folder"):
        assert advice in line


def test_a_hub_that_is_down_is_told_from_one_that_refuses(tmp_path: Path, hub: str) -> None:
    line = asked("model_identity('owner/busy', 'images.model')", tmp_path, hub)
    assert line.startswith(
        "OSError images.model: there is no folder owner/busy, and it could not be fetched from the Hub"
    )
    line = asked("model_identity('owner/moving', 'images.model')", tmp_path, "http://127.0.0.1:9")
    assert line.startswith("OSError images.model: there is no folder owner/moving, and it could not be fetched")


def test_a_model_on_the_hub_stays_at_the_commit_that_it_was_first_taken_at(tmp_path: Path, hub: str) -> None:
    identity = "model_identity('owner/moving', 'images.model')"
    first = asked(identity, tmp_path / "here", hub)
    assert first.startswith("hub:owner/moving@0000")
    assert asked(identity, tmp_path / "here", hub) == first == asked(identity, tmp_path / "here", hub, offline="1")
    assert asked(identity, tmp_path / "elsewhere", hub) != first
    load = "raise OSError('it does not appear to have a file named model.safetensors')"  # transformers' words
    code = f'exec("""with loading(\'owner/moving\', \'images.model\'): {load}""")'
    assert asked(code, tmp_path / "here", hub).startswith(
        "FileNotFoundError images.model: there is no folder owner/moving"
    )
    assert "HF_HUB_OFFLINE is set" in asked(identity, tmp_path / "nowhere", hub, offline="1")


def test_an_identity_is_of_the_files_that_decide_what_a_model_makes(tmp_path: Path) -> None:
    for name in ("model.safetensors", "other.safetensors", "config.json", "README.md"):
        (tmp_path / name).write_text(name)
    first = model_identity(str(tmp_path))
    (tmp_path / "README.md").write_text("nicer words")
    (tmp_path / "preview.png").write_bytes(b"x")
    assert model_identity(str(tmp_path)) == first
    (tmp_path / "config.json").write_text("other settings")
    second = model_identity(str(tmp_path))
    (tmp_path / "model.safetensors").rename(tmp_path / "last.safetensors")
    assert len({first, second, model_identity(str(tmp_path))}) == 3
    with pytest.raises(FileNotFoundError, match="images.model: the folder .* holds no model files"):
        (tmp_path / "empty").mkdir()
        model_identity(str(tmp_path / "empty"), "images.model")


def test_checkpoints_lie_in_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").touch()
    assert checkpoint_file(str(tmp_path), "weights.pth", "x") == tmp_path / "weights.pth"
    assert checkpoint_file(str(tmp_path / "weights.pth"), "other.pth", "x") == tmp_path / "weights.pth"
    with pytest.raises(FileNotFoundError, match="masks.box_model: the folder .* holds no other.pth"):
        checkpoint_file(str(tmp_path), "other.pth", "masks.box_model")


def test_an_incomplete_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        with loading(str(tmp_path), "images.model") as pinned:
            assert pinned == {}
            raise OSError("no file named model.safetensors\nfound anywhere")
    expected = f"images.model: {tmp_path} does not load (no file named model.safetensors); "
    assert str(caught.value) == f"{expected}set images.model to a complete folder"
    with pytest.raises(OSError, match="does not load") as caught, loading(str(tmp_path), "images.model"):
        raise OSError(errno.EIO, "Input/output error")
    assert not isinstance(caught.value, FileNotFoundError)  # a disk may be well again at another try
