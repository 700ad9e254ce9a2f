"""The report's part on training: loss curves, and which evaluations of the trained adapters are up to date."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from dreamcache.configs import TrainingConfig
from dreamcache.dreambooth.evaluation import Evaluation
from flows.charts import Line, line_chart, running_mean
from flows.evaluation_plans import COMPARED, evaluation_of, evaluations, held_out_file
from flows.plans import evaluation_step
from flows.profiles import Profile

POINTS = 2000  # of a curve: more are not seen
KINDS = {"right": "right reference", "wrong": "wrong reference", "none": "no reference"}


def training(profile: Profile, run: Path) -> dict[str, Any] | None:
    """The loss curves and the last held-out losses, or None where nothing was trained."""
    charts = loss_charts(run)
    if charts is None:
        return None
    rows, config, own = _log(run), profile.training, held_out_losses(run)
    held_out = [] if own is None else [{"label": "just trained", **own}]
    # None where too few triplets are held out.
    if held_out_file(run).is_file() and COMPARED in dict(current_evaluations(profile, run)):
        held_out.append({"label": "committed", **json.loads(held_out_file(run).read_bytes())})
    return {
        "steps": int(rows[-1]["step"]) if rows else 0,
        "text": f"{config.steps:,} steps of {config.batch_size} triplets, learning rate {config.learning_rate:g}, "
        f"captions dropped with p = {config.caption_dropout:g}; {config.held_out:.0%} of the triplets, by hash of "
        f"the caption's key, are held out.{_weights(config)}",
        "held_out": held_out,
        **charts,
    }


def loss_charts(run: Path) -> dict[str, str] | None:
    """The curves of a training's losses so far, or None where nothing was trained."""
    if not _log_file(run).is_file():
        return None
    rows = _log(run)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    smooth = running_mean([loss for _, loss in losses], max(1, len(losses) // 20))
    mean = [(step, value) for (step, _), value in zip(losses, smooth, strict=True)]
    every = 1 + len(losses) // POINTS
    validations = [row for row in rows if "validation_right" in row]
    curves = [
        Line(label, [(row["step"], row[f"validation_{name}"]) for row in validations], name)
        for name, label in KINDS.items()
    ]
    return {
        "loss_chart": line_chart(
            [Line("", losses[::every], "pale"), Line("running mean", mean[::every], "accent")], "step", "loss"
        ),
        "validation_chart": line_chart(curves, "step", "held-out loss") if len(validations) > 1 else "",
    }


def _weights(config: TrainingConfig) -> str:
    """What the losses are weighted by as a sentence; empty where by nothing, as the paper's."""
    gamma, subject = config.loss_weights
    said = [f"min-SNR with gamma {gamma:g}"] if gamma is not None else []
    said += [f"errors on the subject counting {subject:g} times"] if subject != 1 else []
    return f" All losses are weighted: {', '.join(said)}." if said else ""


def held_out_losses(run: Path) -> dict[str, float] | None:
    """A run's last loss on held-out triplets by kind of reference, or None where none were held out."""
    found = [row for row in _log(run) if "validation_right" in row]
    return {name: found[-1][f"validation_{name}"] for name in KINDS} if found else None


def _log_file(run: Path) -> Path:
    return run / "training" / "log.csv"


def _log(run: Path) -> list[dict[str, float]]:
    with _log_file(run).open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def current_evaluations(profile: Profile, run: Path) -> list[tuple[str, Evaluation]]:
    """A run's evaluations that are up to date, by name."""
    return [
        (name, evaluation_of(profile, run, name))
        for name in evaluations(profile)
        if not evaluation_step(profile, run, name).changes()
    ]
