"""A miniature DreamBooth benchmark, drawn: `python -m miniature.dreambooth FOLDER`.

The folder has DreamBooth's own layout (see `dreamcache.dreambooth.cases`), so the same code reads it: a folder a
subject with its images and masks, `prompts_and_classes.txt`, the subject table `subjects.json` and the digests
`sha256.txt`. Every subject is an instance from held-out seeds, each of its images in another place. Some share class
and palette with another (`palette_group`) and differ in pattern or proportions only: the hard ones.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

import numpy as np
from PIL import Image

from miniature.places import PLACES
from miniature.subjects import LIVE_CLASSES, Instance, sample_instance, sample_palette_sharer
from miniature.world import HELD_OUT_SEEDS, Scene, make_scene

BENCHMARK_SEEDS = HELD_OUT_SEEDS + 5 * 10**8  # Other checks on held-out seeds stay below.

# By turns a class gives three subjects, two of them of one palette, and two. The prompts say "a {class}", so umbrella
# and sunglasses are not here. The first 12 make 30 subjects, 9 of them live, as DreamBooth has.
_CLASSES = (
    ("cat", "dog"),
    ("backpack", "rabbit"),
    ("teapot", "turtle"),
    ("sneaker", "stuffed bear"),
    ("vase", "duck"),
    ("robot", "car"),
    ("clock", "can"),
    ("boot", "bowl"),
    ("candle", "lamp"),
)

_BOTH_PROMPTS = (
    "a {0} {1} in the jungle",
    "a {0} {1} in the snow",
    "a {0} {1} on the beach",
    "a {0} {1} in the forest",
    "a {0} {1} in the desert",
    "a {0} {1} on top of a rug",
    "a {0} {1} on top of a wooden floor",
    "a {0} {1} with a city in the background",
    "a {0} {1} with a mountain in the background",
    "a {0} {1} in the garden",
    "a {0} {1} in a park with autumn leaves",
    "a {0} {1} on a farm",
    "a {0} {1} in the library",
    "a {0} {1} in the kitchen",
    "a {0} {1} on the lake",
    "a {0} {1} on the moon",
)
OBJECT_PROMPTS: tuple[str, ...] = (
    *_BOTH_PROMPTS,
    "a {0} {1} underwater",
    "a {0} {1} in the bedroom",
    "a {0} {1} on the beach at sunset",
    "a {0} {1} with a city in the background at night",
    "a {0} {1} in the forest in the rain",
    "a {0} {1} in the garden in falling snow",
    "a {0} {1} floating in the air with a mountain in the background",
    "a {0} {1} upside down on top of a wooden floor",
    "a large {0} {1} in the desert",
)
LIVE_PROMPTS: tuple[str, ...] = (
    *_BOTH_PROMPTS,
    "a {0} {1} next to a teapot in the kitchen",
    "a {0} {1} beside a stuffed bear in the bedroom",
    "a {0} {1} in the snow at sunset",
    "a {0} {1} on a farm at night",
    "a {0} {1} with a city in the background in the rain",
    "a {0} {1} in the jungle in the fog",
    "a {0} {1} floating in the air on the moon",
    "a {0} {1} leaning to one side on top of a rug",
    "a small {0} {1} in the garden",
)


@dataclass(frozen=True)
class BenchmarkSubject:
    """A subject of the miniature benchmark; those of one palette_group are of one class and palette."""

    name: str
    instance: Instance
    palette_group: str | None
    seed: int

    @property
    def live(self) -> bool:
        return self.instance.class_name in LIVE_CLASSES


def choose_subjects(number: int) -> list[BenchmarkSubject]:
    """The first `number` subjects of the benchmark, always the same; ValueError for a number below 1."""
    if number < 1:
        raise ValueError(f"a benchmark of {number} subjects: ask for at least 1")
    endless = _endless_subjects()
    return [next(endless) for _ in range(number)]


def _endless_subjects() -> Iterator[BenchmarkSubject]:
    seeds, groups, names = count(BENCHMARK_SEEDS, 1000), count(), dict[str, int]()

    def subject(instance: Instance, seed: int, group: str | None = None) -> BenchmarkSubject:
        number = names[instance.class_name] = names.get(instance.class_name, -1) + 1
        return BenchmarkSubject(f"{instance.class_name.replace(' ', '_')}_{number}", instance, group, seed)

    for three, two in cycle(_CLASSES):
        seed, group = next(seeds), f"palette_{next(groups)}"
        rng = np.random.default_rng(seed)
        first = sample_instance(three, rng)
        yield subject(first, seed, group)
        yield subject(sample_palette_sharer(first, rng), next(seeds), group)
        for class_name in (three, two, two):
            seed = next(seeds)
            yield subject(sample_instance(class_name, np.random.default_rng(seed)), seed)


def draw_images(subject: BenchmarkSubject, number: int) -> list[Scene]:
    """`number` scenes of a subject alone, each in another place; the first, its reference, on a clear day.

    Raises ValueError for a number that is not between 1 and the number of places.
    """
    if not 1 <= number <= len(PLACES):
        raise ValueError(f"{number} images a subject: ask for 1 to {len(PLACES)}, the number of places")
    places = np.random.default_rng((subject.seed, 1)).permutation(np.array(PLACES))[:number].tolist()
    scenes = []
    for position, place in enumerate(places):
        day, clear, medium = ("day", "clear", "medium") if position == 0 else (None, None, None)
        scenes.append(
            make_scene(
                subject.seed + position,
                instance=subject.instance,
                place=place,
                time=day,
                weather=clear,
                size_word=medium,
                action="standing",
                second=False,
            )
        )
    return scenes


def write_benchmark(folder: str | Path, subjects: int = 30, images: int = 5) -> Path:
    """Draw the miniature benchmark into `folder`, which is there whole or not at all.

    Returns the folder. Raises FileExistsError when something is at its place, ValueError for numbers out of range.
    """
    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: remove it, or give another folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # What a writer that was killed left.
    try:
        _write_files(partial, choose_subjects(subjects), images)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(folder.parent)
    return folder


def _write_files(folder: Path, subjects: list[BenchmarkSubject], images: int) -> None:
    digests = []
    for subject in subjects:
        (folder / subject.name).mkdir(parents=True)
        for position, scene in enumerate(draw_images(subject, images)):
            path = folder / subject.name / f"{position:02d}.jpg"
            scene.image.save(path, quality=95, subsampling=0)
            Image.fromarray(scene.mask).save(path.with_suffix(".mask.png"))
            digests.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {subject.name}/{path.name}\n")
    (folder / "sha256.txt").write_text("".join(digests), encoding="utf-8")
    (folder / "prompts_and_classes.txt").write_text(_prompts_and_classes(subjects), encoding="utf-8")
    (folder / "subjects.json").write_text(_subject_table(subjects), encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _prompts_and_classes(subjects: list[BenchmarkSubject]) -> str:
    lines = ["Classes", "", "subject_name,class"]
    lines += [f"{subject.name},{subject.instance.class_name}" for subject in subjects]
    lines += ["", "Prompts"]
    for title, prompts in (("Object Prompts", OBJECT_PROMPTS), ("Live Subject Prompts", LIVE_PROMPTS)):
        listed = ",\n".join(f"'{prompt}'.format(unique_token, class_token)" for prompt in prompts)
        lines += ["", title, "", "prompt_list = [", listed, "]"]
    return "\n".join(lines) + "\n"


def _subject_table(subjects: list[BenchmarkSubject]) -> str:
    entries = []
    for subject in subjects:
        entry = {
            "name": subject.name,
            "class": subject.instance.class_name,
            "live": subject.live,
            "reference": "00.jpg",
        }
        if subject.palette_group is not None:
            entry["palette_group"] = subject.palette_group
        entries.append(json.dumps(entry))
    listed = ",\n    ".join(entries)
    return f'{{\n  "benchmark": "dreambooth-miniature",\n  "subjects": [\n    {listed}\n  ]\n}}\n'


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.dreambooth", description=write_benchmark.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", type=int, default=30)
    parser.add_argument("--images", type=int, default=5, help="images a subject")
    arguments = parser.parse_args()
    try:
        folder = write_benchmark(arguments.folder, arguments.subjects, arguments.images)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"wrote {arguments.subjects} subjects, {arguments.images} images each: {folder}")


if __name__ == "__main__":
    main()
