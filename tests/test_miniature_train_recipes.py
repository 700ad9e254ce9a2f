"""The command that trains the miniature: from nothing, refined beside, and read again."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPModel, LlamaForCausalLM

from miniature.grammar import taxonomy
from miniature.train import __main__ as command
from miniature.train.data import MEMBERS, VIEWS, Pool


@pytest.mark.parametrize(
    ("name", "sizes", "model"),
    [
        ("llama", {"BATCH": 2, "TOKENIZER_EXAMPLES": 50}, LlamaForCausalLM),
        ("clip", {"BATCH": 4}, CLIPModel),
    ],
)
def test_a_recipe_is_trained_from_nothing_and_refined_beside(
    name: str, sizes: dict[str, int], model: Any, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, checkpoints = tmp_path / "work", tmp_path / "checkpoints"
    work.mkdir()
    (work / f"pool-{len(pool)}-of-{MEMBERS}x{VIEWS}").symlink_to(pool.folder)
    for size, value in sizes.items():
        monkeypatch.setattr(importlib.import_module(f"miniature.train.{name}"), size, value)
    words = [name, "--steps", "1", "--scenes", str(len(pool)), "--work", str(work), "--checkpoints", str(checkpoints)]
    found = []
    for more in ([], ["--refine"]):
        monkeypatch.setattr(sys, "argv", ["train", *words, *more])
        command.main()
        found.append(model.from_pretrained(checkpoints / name).state_dict())
    assert all(weights.isfinite().all() for state in found for weights in state.values())
    far = [(one.float() - other.float()).abs().max() for one, other in zip(*(f.values() for f in found), strict=True)]
    assert 0 < max(far) < 0.1, "the second began where the first had ended"
    states = [torch.load(work / part / f"{name}.pt", weights_only=True) for part in ("states", "refined")]
    assert [state["step"] for state in states] == [1, 1]
    assert json.loads((checkpoints / "taxonomy.json").read_text()) == taxonomy()
