"""The flow that scores images or adapters of whatever origin, or the benchmark's real images, as a run's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.evaluate_adapters import draw_benchmark
from flows.evaluation import adapter_models, make_evaluation
from flows.evaluation_plans import scored_step
from flows.forms import UNCHANGED, Settings
from flows.gallery import write_gallery
from flows.given import Given
from flows.lock import locked
from flows.profiles import DrawnBenchmark, load_profile
from shards.run_folder import local_folder


@flow(name="evaluate-given", flow_run_name="scores in {run}")
def evaluate_given(
    profile: str = "miniature",
    run: str = "runs/miniature",
    settings: Settings = UNCHANGED,
    images: str | None = None,
    adapters: str | None = None,
    name: str | None = None,
) -> str:
    """Score images, or adapters, or with neither the benchmark's real images; returns the folder of the results.

    Args:
        profile: "miniature" or "full".
        run: the run folder; nothing needs to be in it.
        settings: dotted settings that differ from the profile's, such as {"benchmark": "/data/dreambooth/dataset"}.
        images: a folder with one image a case, SUBJECT/PROMPT-POSITION.png.
        adapters: a folder of adapters, their name on the Hub, or the authors' released cross_attention-STEP.pt.
        name: what the results are called, by default as these; they lie in RUN/evaluation-of-NAME.
    """
    chosen, folder = load_profile(profile, settings or {}), local_folder(run)
    given = Given(images or None, adapters or None, name or None)  # a form leaves empty texts
    with locked(folder):
        if isinstance(chosen.benchmark, DrawnBenchmark):
            draw_benchmark(chosen.benchmark, folder)
        evaluation = given.evaluation(chosen, folder)
        if scored_step(evaluation, given.label).changes():
            sampled = given.adapters is not None
            models = adapter_models(chosen, str(given.adapters)) if sampled else _no_models

            def pictures(results: Path) -> list[Path]:
                return [write_gallery(evaluation, results / "gallery.jpg")] if sampled else []

            make_evaluation(evaluation, chosen, given.label, models, pictures)
    return str(evaluation.folder)


def _no_models() -> tuple[Any, Any, str]:
    raise AssertionError("images that are given are not sampled")
