"""The pool of drawn scenes that all trainings share, rendered once and kept as memory-mapped arrays."""

import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from miniature.subjects import CLASSES, Instance, sample_instance, sample_palette_sharer
from miniature.world import TRAINING_SEEDS, Scene, make_scene

SIZE = 128
VIEWS = 2  # scenes an instance
MEMBERS = 8  # instances that share a palette, each two of one pattern
GROUP = MEMBERS * VIEWS
CHUNK = 48  # scenes a rendering task; a multiple of GROUP

DEGRADED_SHARE = 0.5  # of a batch
MOST_BLUR = 1.5  # px, deviation of the Gaussian
MOST_NOISE = 0.1  # deviation, of values in [-1, 1]
BLUR_REACH = 4  # px to each side

ARRAYS = {"images": (SIZE, SIZE, 3), "masks": (SIZE, SIZE), "second_masks": (SIZE, SIZE)}


def pool_instance(group: int, member: int) -> Instance:
    """Instance `member` of a group, all of which share the palette of member 0; a function of its arguments.

    An odd member has the looks of the one before it but for the proportions.
    """
    rng = np.random.default_rng([group, member])
    if member == 0:
        return sample_instance(CLASSES[group % len(CLASSES)], rng)
    if member % 2:
        return sample_palette_sharer(pool_instance(group, member - 1), rng, "proportions")
    return sample_palette_sharer(pool_instance(group, 0), rng)


def pool_scene(index: int) -> Scene:
    """Scene `index` of the pool: view index % VIEWS of its instance. ValueError for a seed that is held out."""
    if index >= TRAINING_SEEDS:
        raise ValueError(f"scene {index} is not for training: a pool has at most {TRAINING_SEEDS}")
    group, inside = divmod(index, GROUP)
    return make_scene(index, instance=pool_instance(group, inside // VIEWS))


def describe(index: int, scene: Scene) -> dict[str, Any]:
    second = scene.second
    return {
        "index": index,
        "class": scene.class_name,
        "place": scene.place,
        "caption": scene.caption,
        "time": scene.time,
        "weather": scene.weather,
        "box": list(scene.box),
        "second": None if second is None else {"class": second.class_name, "box": list(second.box)},
    }


def _open(folder: Path, scenes: int, mode: Literal["r", "r+", "w+"]) -> dict[str, NDArray[np.uint8]]:
    return {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", mode=mode, dtype=np.uint8, shape=(scenes, *shape))
        if mode == "w+"
        else np.load(folder / f"{name}.npy", mmap_mode=mode)
        for name, shape in ARRAYS.items()
    }


def _render_chunk(folder: Path, scenes: int, first: int) -> int:
    arrays = _open(folder, scenes, "r+")
    lines = []
    for index in range(first, min(first + CHUNK, scenes)):
        scene = pool_scene(index)
        arrays["images"][index] = np.asarray(scene.image)
        arrays["masks"][index] = scene.mask
        if scene.second is not None:
            arrays["second_masks"][index] = scene.second.mask
        lines.append(json.dumps(describe(index, scene)))
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]
    temporary = folder / f"{first:07d}.tmp"
    temporary.write_text("\n".join(lines) + "\n")
    os.replace(temporary, folder / f"{first:07d}.jsonl")
    return first


def render_pool(folder: Path, scenes: int, workers: int) -> None:
    """Draws the pool's missing chunks; a chunk counts once its descriptions are written."""
    folder.mkdir(parents=True, exist_ok=True)
    if not all((folder / f"{name}.npy").exists() for name in ARRAYS):
        for described in folder.glob("*.jsonl"):  # what they describe is not whole
            described.unlink()
        _open(folder, scenes, "w+")
    missing = [first for first in range(0, scenes, CHUNK) if not (folder / f"{first:07d}.jsonl").exists()]
    with ProcessPoolExecutor(workers) as executor:
        tasks = [executor.submit(_render_chunk, folder, scenes, first) for first in missing]
        for done, task in enumerate(as_completed(tasks), 1):
            task.result()
            if done % 20 == 0 or done == len(tasks):
                print(f"pool: {done * CHUNK}/{len(tasks) * CHUNK} scenes drawn", flush=True)


@dataclass
class Pool:
    """Scenes on disk: uint8 arrays of shape (N, 128, 128[, 3]) and their descriptions."""

    folder: Path

    @cached_property
    def scenes(self) -> list[dict[str, Any]]:
        files = sorted(self.folder.glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    @cached_property
    def arrays(self) -> dict[str, NDArray[np.uint8]]:
        return _open(self.folder, len(self.scenes), "r")

    def __len__(self) -> int:
        return len(self.scenes)

    @cached_property
    def crowded(self) -> list[int]:
        """Indices of the scenes with a second object."""
        return [index for index, scene in enumerate(self.scenes) if scene["second"] is not None]

    def sample(self, count: int, generator: torch.Generator) -> list[int]:
        """`count` scene indices drawn uniformly."""
        return torch.randint(len(self), (count,), generator=generator).tolist()

    def sample_crowded(self, count: int, generator: torch.Generator) -> list[int]:
        """`count` scene indices, half of them of scenes with a second object: by themselves those are three in ten."""
        crowded = torch.randint(len(self.crowded), (count // 2,), generator=generator).tolist()
        return [self.crowded[place] for place in crowded] + self.sample(count - count // 2, generator)

    def images(self, indices: list[int]) -> Tensor:
        """Images as (B, 3, 128, 128) float32 in [-1, 1]."""
        return torch.from_numpy(self.arrays["images"][indices]).permute(0, 3, 1, 2).float() / 127.5 - 1.0

    def masks(self, indices: list[int], name: str = "masks") -> Tensor:
        """Masks as (B, 128, 128) float32 in [0, 1]; `name` is masks or second_masks."""
        return torch.from_numpy(self.arrays[name][indices]).float() / 255.0


def flip_some(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirrors a random half of a batch; returns the batch and the boolean choice."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images), chosen


def degrade_some(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blurs a random half of a batch and puts noise on it: what reads generated pictures must not need sharp ones.

    images: (B, 3, H, W) in [-1, 1], both. An image's blur and noise are drawn up to MOST_BLUR and MOST_NOISE.
    """
    count, channels = images.shape[:2]
    chosen, blur, noise = torch.rand(3, count, generator=generator)
    offsets = torch.arange(-BLUR_REACH, BLUR_REACH + 1)
    deviations = 0.1 + (MOST_BLUR - 0.1) * blur
    kernels = torch.softmax(-0.5 * (offsets / deviations[:, None]).square(), dim=-1)
    kernels = kernels.repeat_interleave(channels, 0)[:, None, None]
    blurred = F.pad(images, [BLUR_REACH] * 4, mode="replicate").flatten(0, 1)[None]
    for kernel in (kernels, kernels.mT):
        blurred = F.conv2d(blurred, kernel, groups=count * channels)
    noisy = blurred.view_as(images) + MOST_NOISE * noise[:, None, None, None] * torch.randn(
        images.shape, generator=generator
    )
    return torch.where((chosen < DEGRADED_SHARE)[:, None, None, None], noisy.clamp(-1, 1), images)
