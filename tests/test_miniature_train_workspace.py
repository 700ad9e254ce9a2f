"""Checkpoints change hands whole, whatever a kill left, and options that mean nothing are refused."""

import os
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from miniature.train import __main__ as command
from miniature.train.loop import update_average
from miniature.train.workspace import Workspace, restore


def workspace(folder: Path) -> Workspace:
    return Workspace(cast(Any, None), folder / "states", folder / "checkpoints", torch.device("cpu"))


def publish(space: Workspace, content: str) -> None:
    space.publish("vae", lambda folder: cast(None, (folder / "weights").write_text(content)))


@pytest.mark.parametrize("kept", [0, 1])
def test_a_kill_between_two_names_loses_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    space, replace, calls = workspace(tmp_path), os.replace, []
    publish(space, "first")

    def killed(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) > kept:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(space, "second")
    for before in space.checkpoints.rglob(".*.old"):
        restore(before)
    assert (space.checkpoints / "vae" / "weights").read_text() == "first"
    publish(space, "third")
    assert (space.checkpoints / "vae" / "weights").read_text() == "third"
    assert [path.name for path in space.checkpoints.iterdir()] == ["vae"]


def test_what_a_kill_left_of_an_older_one_is_not_in_the_way(tmp_path: Path) -> None:
    space = workspace(tmp_path)
    publish(space, "first")
    (space.checkpoints / ".vae.old").mkdir()
    (space.checkpoints / ".vae.old" / "weights").write_text("zeroth")
    publish(space, "second")
    assert (space.checkpoints / "vae" / "weights").read_text() == "second"
    assert [path.name for path in space.checkpoints.iterdir()] == ["vae"]


@pytest.mark.parametrize(
    "words", [["vae", "--steps", "0"], ["unet", "--batch", "-1"], ["vae", "--batch", "4"], ["clip", "--compile"]]
)
def test_options_that_mean_nothing_are_refused(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["miniature.train", *words, "--work", str(tmp_path / "work")])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2 and words[1] in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_tied_weights_are_averaged_once() -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
        cast(nn.Linear, model["head"]).weight = cast(nn.Embedding, model["embed"]).weight
        return model

    average, model = tied(), tied()
    nn.init.zeros_(next(average.parameters()))
    nn.init.ones_(next(model.parameters()))
    update_average(average, model, 0.75)
    torch.testing.assert_close(next(average.parameters()).detach(), torch.full((3, 2), 0.25))
