"""The flow of flows: dataset, adapters, evaluation, report, one after another in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed, State

from flows.artifacts import link_artifact
from flows.build_dataset import build_dataset
from flows.evaluate_adapters import evaluate_adapters
from flows.forms import UNCHANGED, Settings
from flows.plans import report_is_current
from flows.profiles import Profile, load_profile
from flows.report import write_report
from flows.train_adapters import train_adapters
from flows.ui import report_address
from shards.run_folder import local_folder


@flow(name="dreamcache-pipeline", flow_run_name="all of {run}")
def dreamcache_pipeline(profile: str = "miniature", run: str = "runs/miniature", settings: Settings = UNCHANGED) -> str:
    """Build the dataset, train adapters on it, evaluate them and write the report; returns the report's path.

    Args:
        profile: "miniature" or "full".
        run: the run folder; what is up to date there stays.
        settings: dotted settings that differ from the profile's, such as {"images.guidance_scale": 5.0}.
    """
    folder = local_folder(run)
    build_dataset(profile=profile, run=run, settings=settings)
    train_adapters(profile=profile, run=run, settings=settings)
    evaluate_adapters(profile=profile, run=run, settings=settings)
    report(load_profile(profile, settings or {}), folder)
    return str(folder / "report.html")


@task(task_run_name="report", cache_policy=NO_CACHE)
def report(profile: Profile, run: Path) -> State[Any] | None:
    """Write the report unless it shows what lies there already."""
    if report_is_current(profile, run):
        return Completed(name="Cached", message="the report shows this already")
    link_artifact(f"report-{run.name}", f"Report of {run}", _address(run, write_report(profile, run)))
    return None


def _address(run: Path, path: Path) -> str:
    """Where a browser finds a report: at the UI's server if that serves this very one, else the file."""
    here = path.resolve().as_uri()
    if not run.resolve().is_relative_to(Path.cwd()):
        return here
    below = run.resolve().relative_to(Path.cwd())
    there = str(PREFECT_API_URL.value()).removesuffix("/api") + report_address(below)
    try:
        served = httpx.get(there, timeout=10, trust_env=False)
    except httpx.TransportError:
        return here
    return there if served.content == path.read_bytes() else here
