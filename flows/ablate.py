"""The flow that trains and evaluates the paper's ablations on a run's triplets, row by row."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path

from prefect import flow

from flows.ablation_results import write_results
from flows.ablations import AblationRow, Study
from flows.evaluate_adapters import draw_benchmark, evaluate
from flows.evaluation_plans import TRAINED, benchmark_step
from flows.evaluation_workers import make_on_workers
from flows.forms import UNCHANGED, Settings
from flows.lock import InUse, locked
from flows.plans import check_inputs, check_models
from flows.profiles import DrawnBenchmark, load_profile, record_configuration, recorded_profile
from flows.report import write_report
from flows.train_adapters import train
from shards.run_folder import local_folder

log = logging.getLogger(__name__)


@flow(name="ablate-adapters", flow_run_name="ablations of {run}")
def ablate_adapters(
    profile: str = "miniature",
    run: str = "runs/miniature",
    settings: Settings = UNCHANGED,
    only: list[str] | None = None,
    repeats: int = 1,
) -> str:
    """Train and evaluate the rows of the paper's ablations; returns the path of their tables.

    Rows that are up to date stay; one that fails is named in the end and keeps none of the others from being made.
    Several of these at once on one run share out its rows.

    Args:
        profile: "miniature" or "full".
        run: the run folder; build-dataset must have finished there.
        settings: dotted settings that differ from the profile's, such as {"training.steps": 400}, for all rows.
        only: rows or tables, such as ["layers", "text-in-cache"]; what they are compared with is made too.
        repeats: seeds that close rows, or those of `only`, are trained with.
    """
    chosen, folder = load_profile(profile, settings or {}), local_folder(run)
    study, failed = Study(chosen, folder), dict[str, Exception]()
    rows = study.rows(only or (), repeats)
    if isinstance(chosen.benchmark, DrawnBenchmark) and benchmark_step(chosen.benchmark, folder).changes():
        with locked(folder, wait=True):  # no other study may be at work on another benchmark
            draw_benchmark(chosen.benchmark, folder)
    with locked(folder, shared=True):
        check_inputs("train-adapters", chosen, folder)
        check_models(chosen)
        # A row that another process is at is left to it, and looked at again when that has ended, however it did.
        left = [(f"row {number} of {len(rows)}, {row.name}", row) for number, row in enumerate(rows, start=1)]
        for wait in (False, True):
            left = [(title, row) for title, row in left if not _settled(title, row, folder, failed, wait)]
        text = write_results(study)
        write_report(recorded_profile(folder) or chosen, folder)
    if failed:
        reasons = "; ".join(f"{name}: {error}" for name, error in failed.items())
        raise RuntimeError(f"{len(failed)} of {len(rows)} rows failed, the others are kept: {reasons}")
    return str(text)


def _settled(title: str, row: AblationRow, run: Path, failed: dict[str, Exception], wait: bool) -> bool:
    """Make a row unless it is up to date; False where another process is at it, or at what it samples with."""
    with ExitStack() as held:
        try:
            if row.trained_in != row.folder:
                held.enter_context(locked(row.trained_in, wait=wait, shared=True))
            held.enter_context(locked(row.folder, wait=wait))
        except InUse as error:
            log.info("%s: left to %s, which is at it", title, error.holder)
            return False
        row.prepare(run)
        if row.remaining():
            log.info("%s: %s", title, json.dumps(row.settings))
            try:
                _make(row)
            except (ValueError, RuntimeError, OSError) as error:
                log.info("%s, failed: %s", title, error)
                failed[row.name] = error
    return True


def _make(row: AblationRow) -> None:
    record_configuration(row.folder, row.profile)
    if row.trained_in == row.folder:
        train.with_options(task_run_name=f"training of {row.name}")(row.profile, row.folder)
    check_inputs("evaluate-adapters", row.profile, row.folder)
    make_on_workers(row.profile, row.folder)
    evaluate.with_options(task_run_name=f"evaluation of {row.name}")(row.profile, row.folder, TRAINED)
