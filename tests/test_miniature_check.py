"""The checks of the checkpoints: on held-out scenes, what ships passes, and what has its weights mixed up fails."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from miniature import check
from miniature.check import Line
from miniature.train.workspace import CHECKPOINTS
from miniature.world import is_held_out_seed


def test_scenes_are_held_out() -> None:
    scenes = check.held_out(2, second=True)
    assert all(is_held_out_seed(scene.seed) and scene.second is not None for scene in scenes)
    assert len({scene.seed for scene in scenes}) == 2


@pytest.mark.parametrize(
    ("name", "numbers", "needs", "failing"),
    [
        ("clip", {}, ["clip"], 2),
        ("masks", {"scenes": 3}, ["sam", "detector"], 1),
        ("llama", {"captions": 2}, ["llama", "taxonomy.json"], 1),
    ],
)
def test_what_ships_passes_and_what_is_mixed_up_fails(
    name: str, numbers: dict[str, int], needs: list[str], failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = check.held_out
    monkeypatch.setattr(check, "held_out", lambda count, **fixed: held_out(min(count, 3), **fixed))
    assert all(line.passed for line in check.CHECKS[name](CHECKPOINTS, **numbers))
    for part in needs:
        copy = shutil.copytree if (CHECKPOINTS / part).is_dir() else shutil.copyfile
        copy(CHECKPOINTS / part, tmp_path / part)
    generator = torch.Generator().manual_seed(0)
    for file in (tmp_path / needs[0]).glob("*.safetensors"):
        weights = load_file(file)
        for weight in weights.values():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
        save_file(weights, file, {"format": "pt"})
    assert sum(not line.passed for line in check.CHECKS[name](tmp_path, **numbers)) == failing


@pytest.mark.parametrize(
    ("others", "nearest"),
    [
        ([[0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], True),
        ([[0.6, 0.8], [0.8, 0.6], [0.0, 1.0]], False),
        ([[0.8, 0.6], [0.8, 0.6], [0.8, 0.6]], False),  # all are embedded alike
        ([[float("nan")] * 2] * 3, False),
    ],
)
def test_an_instance_is_found_only_if_it_alone_is_nearest(others: list[list[float]], nearest: bool) -> None:
    assert check.is_nearest(torch.tensor([[1.0, 0.0], *others])) is nearest


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["good"], 0, "pass  one: 2 (mark 1)"),
        (["fair", "good"], 0, "pass  one: 1% (mark 1%)"),
        (["bad", "good"], 1, "FAIL  one: 0.5% (mark 1%)"),
        ([], 1, "FAIL  one: nan (mark 1)"),
        (["broken"], 1, "FAIL  one: nan (mark 1)"),
        (["god"], 2, "no check named god: choose from good, fair, bad, broken"),
    ],
)
def test_the_command_fails_with_any_check(
    words: list[str], code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def of(*lines: Line) -> Iterator[Line]:
        return iter(lines)

    checks = {
        "good": lambda _: of(Line("one", 2, 1)),
        "fair": lambda _: of(Line("one", 1, 1, "%")),
        "bad": lambda _: of(Line("one", 0.5, 1, "%"), Line("another", 2, 1)),
        "broken": lambda _: of(Line("one", float("nan"), 1)),
    }
    monkeypatch.setattr(check, "CHECKS", checks)
    monkeypatch.setattr(sys, "argv", ["check", *words])
    with pytest.raises(SystemExit) as ended:
        check.main()
    printed = capsys.readouterr()
    assert ended.value.code == code and said in printed.out + printed.err
