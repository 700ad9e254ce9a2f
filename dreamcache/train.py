"""Training in a run folder by several processes: `torchrun --nproc-per-node 4 -m dreamcache.train RUN`.

Each process has a GPU of its own, or all share the CPU. Without torchrun it is one process.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from pydantic import ValidationError

from dreamcache.backbone import load_backbone
from dreamcache.configs import TrainingConfig
from dreamcache.processes import join_processes, process_count, process_rank
from dreamcache.training import train_adapters
from shards.memory import keep_freed_memory
from shards.run_folder import local_folder
from shards.triplets import triplet_paths, unfinished_part

EVERY = 10.0  # seconds between lines of the encoding


def main(arguments: list[str]) -> int:
    """Train on RUN's triplets in RUN/training, by the settings that RUN/config.json keeps; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dreamcache.train", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder whose dataset is built")
    parser.add_argument("--workers", type=int, default=0, help="processes that read data, for each training process")
    given = parser.parse_args(arguments)
    keep_freed_memory()
    device = join_processes()
    try:
        config, location = _settings(local_folder(given.run))
        paths, folder = triplet_paths(given.run), given.run / "training"
        backbone = load_backbone(location, str(device), getattr(torch, config.dtype))
        report = PrintedProgress() if process_rank() == 0 else None
        adapters = train_adapters(backbone, paths, config, folder, report, workers=given.workers)
    except (ValueError, OSError) as error:
        print(f"dreamcache.train: {error}", file=sys.stderr)
        return 1
    if process_rank() == 0:
        print(f"trained: {adapters}")
    if process_count() > 1:
        dist.destroy_process_group()
    return 0


def _settings(run: Path) -> tuple[TrainingConfig, str]:
    file = run / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: `dreamcache build-dataset --run {run}` writes it")
    try:
        content = json.loads(file.read_text())
        settings, backbone = TrainingConfig(**content["training"]), str(content["backbone"])
        built = content.get("dataset", {})
        sizes = {name: built.get(name) for name in ("shards", "target_triplets")}
    except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"{file} holds no training's settings ({reason}): start build-dataset again") from error
    if (part := unfinished_part(run, **sizes)) is not None:
        raise FileNotFoundError(f"{run}: the dataset ({part}) is not finished: run build-dataset for it first")
    return settings, backbone


class PrintedProgress:
    """Prints how far a training is; of its encoding a line now and then, with the rate and the time left."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None
        self._last = float("-inf")

    def __call__(self, row: dict[str, Any]) -> None:
        if "step" in row:
            speed = f"{row['samples_per_second']:.1f} samples/s"
            print(f"step {row['step']} of {row['steps']}, loss {row['loss']:.4f}, {speed}")
            return
        done, total, now = row["encoded"], row["triplets"], time.monotonic()
        self._first = self._first or (done, now)
        if now - self._last < EVERY and done < total:
            return
        self._last = now
        text = f"encoded {done} of {total} triplets"
        if done > self._first[0] and now > self._first[1]:
            rate = (done - self._first[0]) / (now - self._first[1])
            text += f", {rate:.1f} triplets/s" + (f", {(total - done) / rate:.0f} s left" if done < total else "")
        print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
