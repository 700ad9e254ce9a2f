"""The flow that scores images of whatever origin, or the benchmark's real ones, as the adapters' images are scored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.evaluate_adapters import draw_benchmark
from flows.evaluation import make_evaluation
from flows.evaluation_plans import calibration, given_evaluation, scored_step
from flows.forms import UNCHANGED, Settings
from flows.lock import locked
from flows.profiles import DrawnBenchmark, load_profile
from shards.run_folder import local_folder


@flow(name="evaluate-images", flow_run_name="scores in {run}")
def evaluate_images(
    profile: str = "miniature",
    run: str = "runs/miniature",
    settings: Settings = UNCHANGED,
    images: str | None = None,
    name: str | None = None,
) -> str:
    """Score a folder's images, or, without one, calibrate on the benchmark's real images; returns the results' folder.

    Args:
        profile: "miniature" or "full".
        run: the run folder; nothing needs to be in it.
        settings: dotted settings that differ from the profile's, such as {"benchmark": "/data/dreambooth/dataset"}.
        images: a folder with one image a case, SUBJECT/PROMPT-POSITION.png.
        name: what the results are called, by default as the folder; they lie in RUN/evaluation-of-NAME.
    """
    chosen, folder = load_profile(profile, settings or {}), local_folder(run)
    with locked(folder):
        if isinstance(chosen.benchmark, DrawnBenchmark):
            draw_benchmark(chosen.benchmark, folder)
        if images is None:
            evaluation = calibration(chosen, folder)
        else:
            evaluation = given_evaluation(chosen, folder, name or Path(images).name, Path(images))
        label = evaluation.folder.name
        if scored_step(evaluation, label).changes():
            make_evaluation(evaluation, chosen, label, _no_models)
    return str(evaluation.folder)


def _no_models() -> tuple[Any, Any, str]:
    raise AssertionError("images that are given are not sampled")
