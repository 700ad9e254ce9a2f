"""The UI's server: a taken port, the runs' reports, and a UI that finds its icons and calls nobody."""

import asyncio
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prefect.settings import PREFECT_UI_STATIC_DIRECTORY, temporary_settings

from flows.ui import create_app

ROOT = Path(__file__).resolve().parents[1]


def test_a_taken_port_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "flows.cli", "ui", "--port", str(port), "--folder", str(tmp_path / "server")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stdout == "" and not (tmp_path / "server").exists()
    assert re.fullmatch(rf"dreamcache: port {port} is taken, .*\(make ui PORT={port + 1}, .*\)\n", done.stderr)


def test_the_server_shows_reports_and_keeps_the_ui_quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "here" / "runs" / "one" / "report.html").write_text("the report")
    (tmp_path / "report.html").write_text("not ours")
    monkeypatch.chdir(tmp_path / "here")
    with temporary_settings({PREFECT_UI_STATIC_DIRECTORY: str(tmp_path / "ui")}):
        app = create_app()

    async def get(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ui") as client:
            return await client.get(path)

    def fetched(path: str) -> tuple[int, str]:
        answer = asyncio.run(get(path))
        return answer.status_code, answer.text

    assert fetched("/reports/runs/one") == (200, "the report")
    for path in ("/reports/runs/two", "/reports/%2e%2e", f"/reports/{tmp_path}"):
        assert fetched(path)[0] == 404
    assert fetched("/completed.svg")[1].startswith("<svg") and fetched("/favicon.ico")[0] == 200
    status, page = fetched("/v2/")
    assert status == 200 and (script := re.search(r"/v2/assets/index-[\w-]+\.js", page))
    quiet = fetched(script[0])[1]
    assert "trackingOptions" in quiet and not re.search(r"return`[0-9a-f]{32}`", quiet)
