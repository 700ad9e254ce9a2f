"""Where a training reads and writes: the pool, the states to resume from, the finished checkpoints."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from dreamcache.processes import process_rank
from miniature.train.data import Pool

Model = TypeVar("Model", bound=nn.Module)
CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


@dataclass(frozen=True)
class Workspace:
    """The folders and the device of one training."""

    pool: Pool
    states: Path
    checkpoints: Path
    device: torch.device
    steps: int | None = None  # overrides a recipe's own number of steps
    refine: bool = False  # begin from the finished checkpoint, not from nothing
    batch: int | None = None  # overrides the U-Net's batch
    compile: bool = False  # U-Net or DINO by torch.compile, which needs a C++ compiler on a CPU

    def beginning(self, name: str, built: Model) -> Model:
        """The model that a training begins from, in float32 on the device: `built`, or the checkpoint to refine.

        Raises FileNotFoundError where there is no such checkpoint.
        """
        if self.refine:
            folder = self.checkpoints / name
            if not folder.is_dir():
                raise FileNotFoundError(f"no checkpoint {folder} to refine: train {name} from nothing first")
            finished = type(built).from_pretrained(folder).state_dict()  # type: ignore[attr-defined]
            built.load_state_dict({tensor: finished[tensor] for tensor in built.state_dict()})
        return built.float().to(self.device)

    def publish(self, name: str, write: Callable[[Path], None]) -> None:
        """Replaces checkpoint folder `name` by what `write` puts into a temporary folder; the first process alone."""
        if process_rank():
            return
        final = self.checkpoints / name
        temporary, before = (final.with_name(f".{final.name}.{state}") for state in ("new", "old"))
        restore(before)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        if final.exists():
            os.replace(final, before)
        os.replace(temporary, final)
        shutil.rmtree(before, ignore_errors=True)
        print(f"{name}: written to {final}", flush=True)


def restore(before: Path) -> None:
    """Gives `.NAME.old`, which a kill left behind, its name back, or removes it where NAME is there."""
    if not before.is_dir():
        return
    final = before.with_name(before.name.removeprefix(".").removesuffix(".old"))
    if final.exists():
        shutil.rmtree(before)
    else:
        os.replace(before, final)
