"""What the DAG itself costs: `python -m benchmarks.orchestration` builds datasets whose models cost nothing.

The flow, its tasks, shards and markers are the real ones, and so is Prefect's server; only the engines inside the
stages are cheap. Printed for each number of shards: seconds a shard by the flow and by its stages alone, the peak
memory of flow and server, bytes of the server's database, and how these grow with the number of shards. Then, for the
miniature's image stage with its true model: the share of time outside the model, at one record a second.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from datagen import captions, images, masks
from datagen.block import Block
from datagen.captions import Caption, render_reply
from datagen.dataset import STAGES, Dataset
from flows.messages import quiet_libraries
from flows.profiles import load_profile
from flows.server import QUIET, start_server
from shards import memory
from shards.processes import free_port

SIDE = 16
# Where the stages take their models from.
ENGINES = ((captions, "open_captioner"), (images, "DiffusersPainter"), (masks, "load_engines"))


class Writer:
    """A language model whose captions cost nothing and repeat none."""

    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Replies in the order of the prompts."""
        return [self._reply(prompt, random.Random(seed)) for prompt, seed in zip(prompts, seeds, strict=True)]

    def _reply(self, prompt: str, draw: random.Random) -> str:
        noun = prompt.partition("\n")[0].removeprefix("Subject: ")
        words = " ".join(f"word{draw.randrange(10**6)}" for _ in range(6))
        return render_reply(Caption(noun, noun, f"a {noun} {words}"))


class Painter:
    """An image model that paints the same small picture each time."""

    def __init__(self, config: images.ImagesConfig) -> None:
        self.image = np.random.default_rng(0).uniform(0.2, 0.8, (1, SIDE, SIDE, 3)).astype(np.float32)

    def paint(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """Images (B, H, W, 3), float in [0, 1]."""
        return np.repeat(self.image, len(captions), axis=0)

    def unsafe(self, images: np.ndarray) -> Sequence[bool]:
        """None of them."""
        return [False] * len(images)


class Cutter:
    """A detector and a segmenter that find the same square in every image."""

    def find(self, images: Sequence[Image], nouns: Sequence[str]) -> list[list[masks.ScoredBox]]:
        """One box an image, half as wide and as high as it."""
        sides = [image.width for image in images]
        return [[masks.ScoredBox((side / 4, side / 4, side * 0.75, side * 0.75), 0.9)] for side in sides]

    def cut(self, images: Sequence[Image], boxes: Sequence[masks.Box]) -> list[masks.ProposedMasks]:
        """The boxes as masks."""
        found = []
        for image, box in zip(images, boxes, strict=True):
            mask = np.zeros((1, image.height, image.width), dtype=bool)
            left, top, right, bottom = map(round, box)
            mask[0, top:bottom, left:right] = True
            found.append(masks.ProposedMasks(mask, [0.9]))
        return found


class TimedPainter(images.DiffusersPainter):
    """The true image model; counts the seconds inside it, and from when on it was loaded."""

    inside = 0.0
    loaded = 0.0

    def __init__(self, config: images.ImagesConfig) -> None:
        super().__init__(config)
        TimedPainter.loaded = time.perf_counter()

    def paint(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        """As the model does."""
        started = time.perf_counter()
        painted = super().paint(captions, seeds)
        TimedPainter.inside += time.perf_counter() - started
        return painted


@dataclass(frozen=True)
class Figures:
    """A build: its seconds, and the peak memory of its process in bytes."""

    seconds: float
    memory: int


def cheap_engines(painter: Callable[..., Any] = Painter, begin_masks: Callable[[], None] = lambda: None) -> None:
    """Have the stages of this process take engines that cost nothing; `begin_masks` is called when masks begin."""

    @contextmanager
    def open_writer(config: captions.CaptionsConfig, log: Path) -> Iterator[Writer]:
        yield Writer()

    def load_cutters(config: masks.MasksConfig) -> tuple[Cutter, Cutter]:
        begin_masks()
        return Cutter(), Cutter()

    for (module, name), engine in zip(ENGINES, (open_writer, painter, load_cutters), strict=True):
        setattr(module, name, engine)
    memory.forget_peaks = lambda: None  # the peak asked for here is the whole build's, not a stage's


def settings_of(folder: Path, shards: int, records: int) -> dict[str, Any]:
    """Settings of a dataset for which no model is needed: files in their places, no limits on what captions say."""
    (folder / "model.json").write_text("{}")
    (folder / "taxonomy.json").write_text(json.dumps({"classes": ["teapot"], "places": ["on a beach"]}))
    model = str(folder / "model.json")
    settings: dict[str, Any] = dict.fromkeys(
        ("captions.model", "images.model", "masks.box_model", "masks.mask_model"), model
    )
    settings |= {"captions.taxonomy": str(folder / "taxonomy.json"), "captions_per_shard": records, "shards": shards}
    return settings | {"dedup.max_class_share": 1.0, "dedup.max_class_and_place_share": 1.0, "shards_per_block": 16}


def peak_memory(process: Path = memory.PROCESS) -> int:
    """The most memory that a process has held, by default this one, in bytes."""
    peak = memory.resident_peak(process)
    assert peak is not None, "only Linux tells it"
    return peak


def run_flow(run: Path, settings: dict[str, Any]) -> float:
    """Build a dataset by the flow on the server that PREFECT_API_URL names, which alone hears what it says; seconds."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        quiet_libraries(debug=False)
        from flows.build_dataset import build_dataset

        started = time.perf_counter()
        build_dataset(profile="miniature", run=str(run), settings=settings)
    return time.perf_counter() - started


def build_by_flow(run: Path, settings: dict[str, Any]) -> Figures:
    """Build a dataset whose models cost nothing by the flow."""
    cheap_engines()
    return Figures(run_flow(run, settings), peak_memory())


def build_by_stages(run: Path, settings: dict[str, Any]) -> Figures:
    """Build a dataset by its stages alone, without Prefect."""
    cheap_engines()
    started = time.perf_counter()
    dataset = Dataset(load_profile("miniature", settings).dataset, run)
    deduplicating = Block(dataset)  # of all blocks, as in the flow
    for indices in dataset.blocks():
        block = Block(dataset, indices.start)
        for stage in STAGES:
            for index in indices:
                (deduplicating if stage == "dedup" else block).make(stage, index, lambda done, total: None)
    return Figures(time.perf_counter() - started, peak_memory())


def build_images(run: Path, settings: dict[str, Any]) -> Figures:
    """Build a dataset by the flow with the true image model; the seconds are those of the image stage outside it.

    They run from the moment when the model is loaded, within the first shard's task, to the same moment of the stage
    that follows: a whole number of tasks.
    """
    ended: list[float] = []
    cheap_engines(TimedPainter, lambda: ended.append(time.perf_counter()))
    run_flow(run, settings)
    return Figures(ended[0] - TimedPainter.loaded - TimedPainter.inside, peak_memory())


@contextmanager
def server(folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Prefect's server for as long as this block: its address, and what gives its peak memory in bytes."""
    port = free_port()
    started = start_server(folder, port, "prefect.server.api.server:create_app", {**QUIET, "PREFECT_UI_ENABLED": "0"})
    try:
        address = f"http://127.0.0.1:{port}/api"
        started.wait_until_healthy(f"{address}/health", seconds=600)
        yield address, lambda: peak_memory(Path(f"/proc/{started.pid}"))
    finally:
        started.stop()


def size_of_database(folder: Path) -> int:
    """The bytes of a server's database with what it has not yet sorted in."""
    return sum(file.stat().st_size for file in folder.glob("prefect.db*"))


def in_a_process(work: Callable[..., Figures], *arguments: Any, address: str = "") -> Figures:
    """Do the work in a process of its own, so that its peak memory is its own too."""
    with ProcessPoolExecutor(1, get_context("spawn"), _use_server, (address,)) as pool:
        return pool.submit(work, *arguments).result()


def _use_server(address: str) -> None:
    if address:
        os.environ["PREFECT_API_URL"] = address


def measure_dag(counts: Sequence[int], records: int) -> None:
    """Print what datasets of so many shards cost, and how that grows from the first to each other."""
    first: dict[str, float] = {}
    for shards in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            settings = settings_of(folder, shards, records)
            alone = in_a_process(build_by_stages, folder / "alone", settings)
            with server(folder / "prefect") as (address, memory_of_server):
                empty = size_of_database(folder / "prefect")
                flow = in_a_process(build_by_flow, folder / "run", settings, address=address)
                served = memory_of_server()
            database = size_of_database(folder / "prefect") - empty
        print(
            f"{shards:,} shards of {records} records: {flow.seconds / shards:.3f} s a shard by the flow, "
            f"{alone.seconds / shards:.3f} s by its stages alone; "
            f"{flow.memory / 1e6:,.0f} MB of the flow and {served / 1e6:,.0f} MB of the server at their peak; "
            f"{database / shards / 1e3:,.1f} kB of the server's database a shard",
            flush=True,
        )
        now = {"flow's time": flow.seconds / shards, "stages' time": alone.seconds / shards}
        now |= {"flow's memory": flow.memory, "server's memory": served}
        if first:
            grown = ", ".join(f"{name} {value / first[name]:.2f}" for name, value in now.items())
            print(f"against {counts[0]:,} shards, time by the shard: {grown} times as much", flush=True)
        first = first or now


def measure_images(records: int, shards: int, steps: int) -> None:
    """Print the share of time that the miniature's image stage spends outside its model."""
    with tempfile.TemporaryDirectory() as name, server(Path(name) / "prefect") as (address, _):
        folder = Path(name)
        settings = settings_of(folder, shards, records) | {"images.steps": steps}
        settings["images.model"] = load_profile("miniature").dataset.images.model
        outside = in_a_process(build_images, folder / "run", settings, address=address).seconds / shards
    share = outside / (outside + records)
    print(
        f"image stage: {outside:.2f} s outside the model for a shard of {records} records, "
        f"{100 * share:.2f}% of its time at one record a second (to be at most 2%)"
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.orchestration", description=__doc__)
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 1_000, 10_000], help="of each dataset")
    parser.add_argument("--records", type=int, default=8, help="captions a shard of these")
    parser.add_argument("--image-records", type=int, default=512, help="captions a shard of the image stage")
    parser.add_argument("--image-shards", type=int, default=1)
    parser.add_argument("--image-steps", type=int, default=25, help="denoising steps: they are inside the model")
    options = parser.parse_args()
    measure_dag(options.shards, options.records)
    measure_images(options.image_records, options.image_shards, options.image_steps)


if __name__ == "__main__":
    main()
