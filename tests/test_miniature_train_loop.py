"""The loop of the miniature's trainings: average and rate, exact resume, what is done already, a loss that is none."""

import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from miniature.train import loop
from miniature.train.loop import fit, learning_rate_at

LEARNING_RATE = 0.1


def train_line(folder: Path, steps: int, stop_at: int | None = None) -> list[torch.Tensor]:
    """A small regression by `fit`; with `stop_at`, the process is asked to stop in that step.

    What is saved goes to `FOLDER/average` too.
    """
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 1))  # the first layer by Muon, the last by AdamW

    def loss_at(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            signal.raise_signal(signal.SIGTERM)
        inputs = torch.randn(8, 4, generator=generator)
        return (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    def save(average: nn.Module) -> None:
        torch.save(average.state_dict(), folder / "average")

    average = fit(
        "line", module, loss_at, steps=steps, learning_rate=LEARNING_RATE, state_folder=folder, save=save, warmup=2
    )
    return [*module.state_dict().values(), *average.state_dict().values()]


def test_a_stopped_training_saves_its_average_and_resumes_exactly(tmp_path: Path) -> None:
    undisturbed = train_line(tmp_path / "a", 12)
    with pytest.raises(SystemExit, match="143"):
        train_line(tmp_path / "b", 12, stop_at=5)
    saved, state = (torch.load(tmp_path / "b" / name, weights_only=True) for name in ("average", "line.pt"))
    assert all(torch.equal(weights, state["average"][name]) for name, weights in saved.items())
    resumed = train_line(tmp_path / "b", 12)
    assert all(torch.equal(one, other) for one, other in zip(undisturbed, resumed, strict=True))


def test_the_average_of_the_steps_is_what_is_saved(tmp_path: Path) -> None:
    module, steps = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)), 12
    seen: list[torch.Tensor] = []
    saved: list[dict[str, torch.Tensor]] = []

    def loss_at(_step: int, generator: torch.Generator) -> torch.Tensor:
        seen.append(module[1].bias.detach().clone())
        return (module(torch.randn(4, 1, generator=generator)) - 3.0).square().mean()

    fit(
        "average",
        module,
        loss_at,
        steps=steps,
        learning_rate=LEARNING_RATE,
        state_folder=tmp_path,
        save=lambda average: saved.append(average.state_dict()),
        ema_decay=0.5,
    )
    average = seen[0]
    for step, weight in enumerate([*seen[1:], module[1].bias.detach()]):
        decay = min(0.5, (step + 1) / (step + 10))  # at first it forgets more, else it would long be the beginning
        average = decay * average + (1 - decay) * weight
    assert torch.allclose(saved[0]["1.bias"], average, atol=1e-6)
    assert not torch.allclose(saved[0]["1.bias"], module[1].bias, atol=1e-3)
    assert saved[0]["1.num_batches_tracked"] == steps


def test_the_rate_rises_to_its_peak_falls_to_a_hundredth_and_reaches_both_optimizers(tmp_path: Path) -> None:
    rates = [learning_rate_at(step, 110, 1.0, 10) for step in range(111)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)]) and rates[10] == 1.0
    assert all(one > other for one, other in zip(rates[10:], rates[11:], strict=False))
    assert rates[60] == pytest.approx(0.505) and rates[110] == pytest.approx(0.01)
    module = nn.Sequential(nn.Linear(4, 20), nn.Linear(20, 1))  # by Muon, by AdamW
    before = [layer.weight.detach().clone() for layer in module]
    fit(
        "rate",
        module,
        lambda _step, generator: module(torch.randn(8, 4, generator=generator)).square().mean(),
        steps=1,
        learning_rate=LEARNING_RATE,
        state_folder=tmp_path,
        save=lambda _: None,
        weight_decay=0.0,
        warmup=10,
    )
    moved = [float((layer.weight - old).detach().abs().mean()) for layer, old in zip(module, before, strict=True)]
    assert 0.0002 < moved[0] < 0.002 and moved[1] == pytest.approx(0.01, rel=0.01)


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


@pytest.mark.parametrize(("seconds", "kept"), [(loop.STATE_EVERY_SECONDS, []), (-1.0, [3])])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_leaves_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, kept: list[int]
) -> None:
    monkeypatch.setattr(loop, "STATE_EVERY_SECONDS", seconds)
    module = nn.Linear(1, 1)
    with pytest.raises(FloatingPointError, match="step 3"):
        fit(
            "nan",
            module,
            lambda step, _generator: module(torch.full((1, 1), float("nan") if step == 3 else 1.0)).sum(),
            steps=9,
            learning_rate=LEARNING_RATE,
            state_folder=tmp_path,
            save=lambda _: None,
        )
    states = [torch.load(file, weights_only=True) for file in tmp_path.iterdir()]
    assert [state["step"] for state in states] == kept
    assert all(weights.isfinite().all() for state in states for weights in state["module"].values())
