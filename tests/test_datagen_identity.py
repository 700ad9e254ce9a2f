"""Gated, absent and incomplete weights: one line with the page, the token and the way by a local folder."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from datagen.identity import checkpoint_file, loading

ROOT = Path(__file__).resolve().parents[1]


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a client sees of a gated model, whose files it refuses, and of one that is not there."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/owner/gated"):
            status, code, body = 200, "", json.dumps({"id": "owner/gated", "sha": "0" * 40}).encode()
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


@pytest.mark.parametrize("name", ["gated", "absent"])
def test_what_the_hub_refuses_is_one_line_that_says_what_to_do(tmp_path: Path, hub: str, name: str) -> None:
    code = "import sys; from datagen.identity import checkpoint_file\n"
    code += "try: checkpoint_file(sys.argv[1], 'weights.pth', 'masks.box_model')\n"
    code += "except FileNotFoundError as error: print(error)"
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "NO_PROXY": "*"}
    command = [sys.executable, "-c", code, f"owner/{name}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("masks.box_model: ")
    for advice in (f"https://huggingface.co/owner/{name}", "HF_TOKEN", "set masks.box_model to the local folder"):
        assert advice in line


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
