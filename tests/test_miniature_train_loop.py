"""The loop of the miniature's trainings: exact resume, what is done already, and a loss that is no number."""

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from miniature.train.loop import fit


def train_line(folder: Path, steps: int, stop_at: int | None = None) -> list[torch.Tensor]:
    """A small regression by `fit`; with `stop_at`, the process is asked to stop in that step."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 1))  # the first layer by Muon, the last by AdamW

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            signal.raise_signal(signal.SIGTERM)
        inputs = torch.randn(8, 4, generator=generator)
        return (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    average = fit(
        "line", module, loss_at, steps=steps, learning_rate=0.1, state_folder=folder, save=lambda _: None, warmup=2
    )
    return [*module.state_dict().values(), *average.state_dict().values()]


def test_a_stopped_training_resumes_exactly(tmp_path: Path) -> None:
    undisturbed = train_line(tmp_path / "a", 12)
    with pytest.raises(SystemExit):
        train_line(tmp_path / "b", 12, stop_at=5)
    resumed = train_line(tmp_path / "b", 12)
    assert all(torch.equal(one, other) for one, other in zip(undisturbed, resumed, strict=True))


def test_a_finished_training_replaces_no_newer_checkpoint(tmp_path: Path) -> None:
    saves: list[int] = []

    def train(steps: int) -> None:
        module = nn.Linear(1, 1)
        fit(
            "line",
            module,
            lambda _step, _generator: module(torch.ones(1, 1)).sum(),
            steps=steps,
            learning_rate=0.1,
            state_folder=tmp_path,
            save=lambda _: saves.append(steps),
        )

    for steps in (2, 2, 3, 3):
        train(steps)
    assert saves == [2, 3]
    (tmp_path / "line.saved").unlink()  # as if it had been killed before its checkpoint was written
    train(3)
    assert saves == [2, 3, 3]


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 0"):
        fit(
            "nan",
            module,
            lambda _step, _generator: module(torch.full((1, 1), float("nan"))).sum(),
            steps=1,
            learning_rate=0.1,
            state_folder=tmp_path,
            save=lambda _: None,
        )
    assert not list(tmp_path.iterdir())
