"""Peaks of memory in markers, memory that is kept, and batches that fit into a GPU's memory."""

import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_datagen import build_alone, tiny_dataset_config, tiny_models

from datagen.captions_transformers import TransformersCaptioner
from datagen.dataset import Dataset
from datagen.images import DiffusersPainter
from datagen.masks_transformers import TransformersBoxFinder
from shards.memory import GPUS

SCRIPT = """
from shards import memory
block = b"x" * 200_000_000
held = memory.peaks()["memory"]
del block
assert memory.peaks()["memory"] > 200_000_000, "a peak is forgotten by itself"
memory.forget_peaks()
print(held, memory.peaks()["memory"], sorted(memory.peaks()))
"""


def test_a_peak_lasts_until_it_is_forgotten() -> None:
    said = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout.split(
        " ", 2
    )
    assert int(said[0]) > 200_000_000 > int(said[1]) > 0
    assert said[2].strip() == "['memory']"  # no GPU was touched


FAULTS = """
import resource
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    blocks = [b"x" * 2**24 for _ in range(8)]  # as the outputs of some layers, gone at once
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.skipif(any(path.exists() for path in GPUS), reason="there is a GPU: models do not run on the CPU")
def test_memory_is_kept_by_what_runs_flows() -> None:
    by_default, kept = (
        int(subprocess.run([sys.executable, "-c", first + FAULTS], capture_output=True, text=True, check=True).stdout)
        for first in ("", "import flows\n")
    )
    assert kept < by_default / 5


@pytest.mark.parametrize(
    ("stage", "engine", "method"),
    [
        ("captions", TransformersCaptioner, "write"),
        ("images", DiffusersPainter, "paint"),
        ("masks", TransformersBoxFinder, "find"),
    ],
)
def test_the_batch_size_that_fits_is_found_once_a_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, engine: type, method: str
) -> None:
    work, sizes = getattr(engine, method), []

    def full(self: object, records: Sequence[object], others: Sequence[object]) -> Any:
        sizes.append(len(records))
        if len(records) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return work(self, records, others)

    monkeypatch.setattr(engine, method, full)
    config = tiny_dataset_config(tiny_models())
    build_alone(config, tmp_path)
    assert [size for size in sizes if size > 2] == [4]
    markers = Dataset(config, tmp_path).markers(stage, range(2))
    assert [marker.execution["batch_size"] for marker in markers] == [2, 2]
