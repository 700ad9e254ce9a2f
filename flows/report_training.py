"""The report's part on training: loss curves, and which evaluations of the trained adapters are up to date."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from dreamcache.configs import TrainingConfig
from dreamcache.dreambooth.evaluation import Evaluation
from flows.charts import Line, line_chart, running_mean
from flows.evaluation_plans import COMPARED, evaluation_of, evaluations
from flows.plans import evaluation_step
from flows.profiles import Profile

POINTS = 2000  # of a curve: more are not seen
KINDS = {"right": "right reference", "wrong": "wrong reference", "none": "no reference"}


def training(profile: Profile, run: Path) -> dict[str, Any] | None:
    """The loss curves and the last held-out losses, or None where nothing was trained."""
    log = run / "training" / "log.csv"
    if not log.is_file():
        return None
    rows = _log(log)
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    smooth = running_mean([loss for _, loss in losses], max(1, len(losses) // 20))
    mean = [(step, value) for (step, _), value in zip(losses, smooth, strict=True)]
    every = 1 + len(losses) // POINTS
    validations = [row for row in rows if "validation_right" in row]
    curves = [
        Line(label, [(row["step"], row[f"validation_{name}"]) for row in validations], name)
        for name, label in KINDS.items()
    ]
    config = profile.training
    held_out = [{"label": "just trained", **_held_out(row)} for row in validations[-1:]]
    compared = run / COMPARED / "held-out.json"  # none where too few triplets are held out
    if compared.is_file():
        held_out.append({"label": "committed", **json.loads(compared.read_text())})
    return {
        "steps": int(rows[-1]["step"]) if rows else 0,
        "text": f"{config.steps:,} steps of {config.batch_size} triplets, learning rate {config.learning_rate:g}, "
        f"captions dropped with p = {config.caption_dropout:g}; {config.held_out:.0%} of the triplets, by hash of "
        f"the caption's key, are held out.{_weights(config)}",
        "loss_chart": line_chart(
            [Line("", losses[::every], "pale"), Line("running mean", mean[::every], "accent")], "step", "loss"
        ),
        "validation_chart": line_chart(curves, "step", "held-out loss") if len(validations) > 1 else "",
        "held_out": held_out,
    }


def _weights(config: TrainingConfig) -> str:
    """What the losses are weighted by as a sentence; empty where by nothing, as the paper's."""
    gamma, subject = config.loss_weights
    said = [f"min-SNR with gamma {gamma:g}"] if gamma is not None else []
    said += [f"errors on the subject counting {subject:g} times"] if subject != 1 else []
    return f" All losses are weighted: {', '.join(said)}." if said else ""


def held_out_losses(run: Path) -> dict[str, float] | None:
    """A run's last loss on held-out triplets by kind of reference, or None where none were held out."""
    found = [_held_out(row) for row in _log(run / "training" / "log.csv") if "validation_right" in row]
    return found[-1] if found else None


def _log(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def _held_out(row: dict[str, float]) -> dict[str, float]:
    return {name: row[f"validation_{name}"] for name in KINDS}


def current_evaluations(profile: Profile, run: Path) -> list[tuple[str, Evaluation]]:
    """A run's evaluations that are up to date, by name."""
    return [
        (name, evaluation_of(profile, run, name))
        for name in evaluations(profile)
        if not evaluation_step(profile, run, name).changes()
    ]
