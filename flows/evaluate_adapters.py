"""The flow that measures a run's adapters on the benchmark: images, embeddings, rows, summary."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.evaluation import adapter_models, make_evaluation, write_held_out_loss
from flows.evaluation_plans import (
    TRAINED,
    adapters_of,
    benchmark_step,
    evaluation_of,
    evaluations,
    held_out_file,
    held_out_inputs,
)
from flows.evaluation_workers import make_on_workers
from flows.forms import UNCHANGED, Settings
from flows.lock import locked
from flows.plans import check_inputs, evaluation_step
from flows.profiles import DrawnBenchmark, Profile, load_profile, record_configuration
from shards.processes import end_with_parent
from shards.run_folder import local_folder

log = logging.getLogger(__name__)


@flow(name="evaluate-adapters", flow_run_name="evaluation of {run}")
def evaluate_adapters(profile: str = "miniature", run: str = "runs/miniature", settings: Settings = UNCHANGED) -> str:
    """Measure the adapters in a run folder on the DreamBooth benchmark; returns the path of the summary.

    Args:
        profile: "miniature" or "full".
        run: the run folder; train-adapters must have finished there.
        settings: dotted settings that differ from the profile's, such as {"evaluation.images_per_prompt": 2};
            {"workers.evaluation": "evaluate-block/gpu"} has images and embeddings made by that deployment's workers.
    """
    chosen, folder = load_profile(profile, settings or {}), local_folder(run)
    with locked(folder):
        check_inputs("evaluate-adapters", chosen, folder)
        record_configuration(folder, chosen)
        if isinstance(chosen.benchmark, DrawnBenchmark):
            draw_benchmark(chosen.benchmark, folder)
        make_on_workers(chosen, folder)
        for name in evaluations(chosen):
            evaluate(chosen, folder, name)
    return str(folder / TRAINED / "summary.json")


@task(task_run_name="benchmark", cache_policy=NO_CACHE)
def draw_benchmark(drawn: DrawnBenchmark, run: Path) -> State[Any] | None:
    """Draw the miniature's benchmark, in a process of its own: the miniature's code is no part of the pipeline."""
    step = benchmark_step(drawn, run)
    if not step.changes():
        return Completed(name="Cached", message="drawn already")
    step.begin()
    images = step.folder / "images"
    if not images.is_dir():
        log.info("benchmark: drawing %d subjects", drawn.subjects)
        command = [sys.executable, "-m", "miniature.dreambooth", str(images)]
        command += ["--subjects", str(drawn.subjects), "--images", str(drawn.images)]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=end_with_parent)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise RuntimeError(f"drawing the benchmark failed with code {done.returncode}: {last}")
    step.finish([images / "sha256.txt"], {})
    return None


@task(task_run_name="{name}", cache_policy=NO_CACHE)
def evaluate(profile: Profile, run: Path, name: str) -> State[Any] | None:
    """Sample, embed and score what is not up to date; each subject and variant is a shard that resumes by itself."""
    if not evaluation_step(profile, run, name).changes():
        log.info("%s: up to date", name)
        return Completed(name="Cached", message="evaluated already, by the same recipe")

    models = adapter_models(profile, adapters_of(profile, run, name))
    inputs = held_out_inputs(profile, run, name)

    def outputs(folder: Path) -> list[Path]:
        if not inputs:
            (folder / held_out_file(run).name).unlink(missing_ok=True)  # of earlier settings
            return []
        by_workers = profile.workers.evaluation is not None and held_out_file(run).is_file()
        return [held_out_file(run) if by_workers else write_held_out_loss(profile, run, models)]

    make_evaluation(evaluation_of(profile, run, name), profile, name, models, outputs, inputs)
    return None
