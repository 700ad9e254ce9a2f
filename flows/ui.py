"""Prefect's UI for this checkout: a server that remembers, the deployments, their workers, and the runs' reports."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fastapi import FastAPI

START_SECONDS = 600  # what ends is noticed at once, so only a busy machine takes long


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="the port of the UI and its API")] = 4200,
    folder: Annotated[
        Path, typer.Option(help="where the server's database is; RUN/prefect has what a run's commands did")
    ] = Path(".prefect"),
    end_with_parent: Annotated[bool, typer.Option("--end-with-parent", hidden=True)] = False,
) -> None:
    """Serve Prefect's UI, with the deployments of prefect.yaml and workers that run them, until Ctrl-C.

    Example: dreamcache ui --port 4201
    """
    from flows.lock import locked
    from flows.server import LEASES_IN_FILES, QUIET, start_server
    from shards import processes

    if end_with_parent:
        processes.end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if not Path("prefect.yaml").is_file():
        raise FileNotFoundError("no prefect.yaml here: start the UI in the project's folder, which its worker runs")
    _check_port(port)
    address = f"http://127.0.0.1:{port}"
    environment = {
        **QUIET,
        "PREFECT_HOME": str(folder.resolve()),  # nothing is read from the user's home, nor written there
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": LEASES_IN_FILES,
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_UI_API_URL": f"{address}/api",
        "PREFECT_UI_STATIC_DIRECTORY": str(folder.resolve() / "ui"),
    }
    with locked(folder):
        print(f"Starting Prefect's server, its database in {folder}", flush=True)
        started = [start_server(folder, port, "flows.ui:create_app", environment)]
        try:
            started[0].wait_until_healthy(f"{address}/api/health", START_SECONDS)
            for pool in _work_pools():
                # One run at a time: they would share one GPU, or the CPU. A worker makes its pool if there is none yet.
                command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process"]
                log, variables = folder / f"worker-{pool}.log", {**os.environ, **environment}
                worker = processes.ServerProcess(f"worker of {pool}", [*command, "--limit", "1"], log, variables)
                started.insert(0, worker)  # stopped before the server, which it tells of the run that it breaks off
                worker.wait_until_healthy(f"{address}/api/work_pools/{pool}", START_SECONDS)
            _deploy({**os.environ, **environment})
            print(_greeting(address, folder), flush=True)
            while True:
                time.sleep(1)
                for process in started:
                    process.check()
        except KeyboardInterrupt:
            print(f"\nStopping; the next start finds everything again in {folder}", flush=True)
        finally:
            for process in started:
                process.stop()


def _check_port(port: int) -> None:
    """Raise RuntimeError where something listens on a port already."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just ended does not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            text = f"port {port} is taken, perhaps by another UI: end what listens there, or choose another port"
            raise RuntimeError(f"{text} (make ui PORT={port + 1}, dreamcache ui --port {port + 1})") from error


def _work_pools() -> list[str]:
    """The work pools of the deployments in prefect.yaml."""
    import yaml

    deployments = yaml.safe_load(Path("prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    return sorted({deployment["work_pool"]["name"] for deployment in deployments})


def _deploy(environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        last = (f"{done.stdout}\n{done.stderr}".strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"the deployments of prefect.yaml were refused: {last}")


def _greeting(address: str, folder: Path) -> str:
    """Where the UI is, and how to run every deployment."""
    import httpx

    def found(kind: str) -> list[dict[str, str]]:
        return list(httpx.post(f"{address}/api/{kind}/filter", json={}, trust_env=False).raise_for_status().json())

    flows = {flow["id"]: flow["name"] for flow in found("flows")}
    prefect = Path(sys.executable).with_name("prefect")
    names = sorted(f"{flows[deployment['flow_id']]}/{deployment['name']}" for deployment in found("deployments"))
    return "\n".join(
        (
            f"\nUI: {address}",
            "Deployments run from there, or from another terminal:",
            f"    export PREFECT_API_URL={address}/api",
            *(f"    {prefect} deployment run {name}" for name in names),
            "The commands of dreamcache show up there too, with that PREFECT_API_URL.",
            f"Ctrl-C ends all of it. What server and workers say is in {folder}/*.log",
        )
    )


def report_address(run: Path) -> str:
    """Where a run's report is served, below the address of the UI's server."""
    return f"/reports/{run.as_posix()}"


def create_app() -> FastAPI:
    """Prefect's server with its UI, quietened, and beside it the reports of the run folders below the current one."""
    import prefect
    from fastapi import HTTPException
    from fastapi.responses import FileResponse
    from prefect.server.api import server
    from prefect.settings import PREFECT_UI_STATIC_DIRECTORY
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    def report(request: Request) -> Response:
        path = Path(request.path_params["run"], "report.html").resolve()
        if not (path.is_relative_to(Path.cwd()) and path.is_file()):
            raise HTTPException(404, "there is no report of such a run")
        return FileResponse(path)

    app = server.create_app()
    # The UI calls its makers' analytics when it loads, whatever the server's settings say; without a key it does not.
    for script in Path(PREFECT_UI_STATIC_DIRECTORY.value() or "").glob("v2/assets/index-*.js"):
        text = script.read_text(encoding="utf-8")
        if text != (quiet := re.sub(r"(\(\)\{return`)[0-9a-f]{32}(`\})", r"\1\2", text)):
            script.write_text(quiet, encoding="utf-8")
    # It looks for its icons at the root, though it lives below /v2.
    pictures = Path(prefect.__ui_v2_static_path__)
    icons = [*pictures.glob("*.svg"), *pictures.glob("ico/*.ico")]
    routes = [Route(f"/{icon.name}", lambda _, icon=icon: FileResponse(icon)) for icon in icons]
    app.router.routes[:0] = [Route(report_address(Path("{run:path}")), report), *routes]  # the UI takes all other paths
    return app
