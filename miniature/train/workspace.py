"""Where a training reads and writes: the pool, the states to resume from, the finished checkpoints."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from miniature.train.data import Pool

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


@dataclass(frozen=True)
class Workspace:
    """The folders and the device of one training."""

    pool: Pool
    states: Path
    checkpoints: Path
    device: torch.device
    steps: int | None = None  # overrides a recipe's own number of steps

    def publish(self, name: str, write: Callable[[Path], None]) -> None:
        """Replaces checkpoint folder `name` by what `write` puts into a temporary folder."""
        final = self.checkpoints / name
        temporary = final.with_name(f".{name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        print(f"{name}: written to {final}", flush=True)
