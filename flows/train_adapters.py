"""The flow that trains adapters on a run's triplets, resuming where a killed one stood."""

from __future__ import annotations

import logging
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from flows.artifacts import Progress, chart_artifact, pictures_artifact, table_artifact
from flows.forms import UNCHANGED, Settings
from flows.lock import locked
from flows.plans import bring_for_training, check_inputs, training_step
from flows.profiles import Profile, load_profile, record_configuration
from flows.report_training import KINDS, loss_charts
from shards.run_folder import run_folder
from shards.store import place_of
from shards.transfer import send
from shards.triplets import TripletShards, triplet_paths

log = logging.getLogger(__name__)


@flow(name="train-adapters", flow_run_name="adapters of {run}")
def train_adapters(profile: str = "miniature", run: str = "runs/miniature", settings: Settings = UNCHANGED) -> str:
    """Train adapters on the triplets in a run folder; returns their folder.

    Args:
        profile: "miniature" or "full".
        run: the run folder, also on an object store; build-dataset must have finished there.
        settings: dotted settings that differ from the profile's, such as {"training.steps": 400}.
    """
    chosen, folder = load_profile(profile, settings or {}), run_folder(run)
    with locked(folder):
        bring_for_training(chosen, folder)
        check_inputs("train-adapters", chosen, folder)
        record_configuration(folder, chosen)
        train(chosen, folder)
        send(folder, "config.json", "training")
    return place_of(folder / "training" / "adapters")


@task(task_run_name="training", cache_policy=NO_CACHE)
def train(profile: Profile, run: Path) -> State[Any] | None:
    """Train, or find that the adapters of this very recipe are there."""
    step = training_step(profile, run)
    reasons = step.changes()
    if not reasons:
        log.info("training: up to date")
        return Completed(name="Cached", message="trained already, by the same recipe")
    import torch

    from dreamcache import load_backbone
    from dreamcache import train_adapters as train_in_folder
    from dreamcache.checkpoints import load_state

    log.info("training: %s", "; ".join(reasons[:3]))
    if (aside := step.begin()) is not None:
        log.info("training: earlier work of another recipe is kept in %s", aside)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backbone = load_backbone(profile.backbone, device=device, dtype=getattr(torch, profile.training.dtype))
    _tell_of_enlarged(run, backbone.image_size)
    rows: list[dict[str, Any]] = []
    encoding: Progress | None = None
    with Progress("training", profile.training.steps, "steps") as progress, ExitStack() as until_trained:

        def report(row: dict[str, Any]) -> None:
            nonlocal encoding
            if "encoded" in row:
                encoding = encoding or until_trained.enter_context(Progress("latents", row["triplets"], "triplets"))
                encoding.at(row["encoded"])
                return
            until_trained.close()  # else its time left would stand there throughout the training
            progress.at(int(row["step"]), f"loss {row['loss']:.4f}")
            if row.get("validation_right") is not None:
                rows.append(row)
                log.info("training: step %d, held-out loss %s", row["step"], _held_out(row))
                _show(run)

        # A GPU waits for no decoding; on a CPU more processes would only take turns.
        workers = min(8, os.cpu_count() or 1) if device == "cuda" else 0
        adapters = train_in_folder(backbone, triplet_paths(run), profile.training, step.folder, report, workers=workers)
    state = load_state(step.folder / "state" / "training.pt") or {}
    step.finish(
        [*sorted(path for path in adapters.iterdir() if path.is_file()), step.folder / "log.csv"],
        {"seconds": round(state.get("seconds", 0.0), 1), "device": device, "steps": profile.training.steps},
    )
    _show(run)
    if rows:
        text = f"Loss on held-out triplets; the adapters are in {step.folder / 'adapters'}"
        table_artifact("held-out-loss", text, [_validation(row) for row in rows])
        log.info("training: done; held-out loss %s", _held_out(rows[-1]))
    return None


def _tell_of_enlarged(run: Path, side: int) -> None:
    """Warn where the targets are smaller than what the backbone was trained on, and will be enlarged for it."""
    shards = TripletShards(triplet_paths(run))
    first = next((shard for shard, count in enumerate(shards.counts) if count), None)
    if first is not None and (stored := min(shards.read(first, 0).image.size)) < side:
        advice = f"build a dataset with images.stored_size={side}, or take a backbone of {stored} px"
        log.warning("training: the targets' %d px are enlarged to the backbone's %d px: %s", stored, side, advice)


def _show(run: Path) -> None:
    """How the training stands: its curves, and the newest grid of samples if these are taken."""
    charts = loss_charts(run)
    if charts is not None:
        chart_artifact("training-loss", "Training loss", charts["loss_chart"])
        chart_artifact("held-out-loss-curves", "Loss on held-out triplets", charts["validation_chart"])
    for path in sorted((run / "training" / "samples").glob("*.png"))[-1:]:
        grid = Image.open(path)
        text = f"Held-out subjects at step {int(path.stem)}: reference, plain, personalized"
        pictures_artifact("training-samples", text, [grid], columns=1, side=max(grid.size))


def _validation(row: dict[str, Any]) -> dict[str, Any]:
    return {"step": row["step"]} | {name: round(row[f"validation_{name}"], 5) for name in KINDS}


def _held_out(row: dict[str, Any]) -> str:
    return ", ".join(f"{text} {row[f'validation_{name}']:.5f}" for name, text in KINDS.items())
