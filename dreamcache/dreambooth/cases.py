"""The DreamBooth benchmark's cases: subjects, their images, prompts and the seeds they are sampled with.

A benchmark is a folder of this layout, DreamBooth's own:

    FOLDER/prompts_and_classes.txt      a section "Classes" of CSV lines `subject_name,class`; and sections
                                        "Object Prompts" and "Live Subject Prompts", each a Python list of lines
                                        `'a {0} {1} in the snow'.format(unique_token, class_token),`
    FOLDER/SUBJECT/00.jpg, 01.jpg ...   the subject's images (.jpg, .jpeg or .png); square, else scored by a centre crop
    FOLDER/SUBJECT/00.mask.png          a subject mask of the image 00 (optional: 8-bit grey, white is the subject)
    FOLDER/subjects.json                the subject table (optional; without it the package's own, the 30 of DreamBooth)
    FOLDER/sha256.txt                   "DIGEST  SUBJECT/00.jpg" lines as sha256sum writes them, one an image (optional
                                        beside a subjects.json; DreamBooth's own digests are in the package)

`subjects.json` is one object:

    {"benchmark": "dreambooth-miniature",
     "subjects": [{"name": "teapot_0",        the folder, [0-9a-z_]+
                   "class": "teapot",         the class word put into the prompts; equal to prompts_and_classes.txt's
                   "live": false,             which of the two lists of prompts
                   "reference": "02.jpg",     the one reference, a file of the subject's folder
                   "palette_group": "g3"},    optional: subjects of one group share their palette, and are hard to tell
                  ...],
     "prompts": {"object": ["a {class} in the snow", ...], "live": [...]}}    optional where prompts_and_classes.txt is

In prompts the unique token is dropped, as the benchmark scores them: "a backpack in the jungle".
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

from dreamcache.dreambooth.layout import (
    MASK_SUFFIX,
    find_images,
    image_key,
    read_digests,
    read_prompts_and_classes,
    read_table,
    some,
    verify_images,
)

PROMPTS_FILE = "prompts_and_classes.txt"
SUBJECTS_FILE = "subjects.json"
DIGESTS_FILE = "sha256.txt"
PACKAGED = files(__package__)
# Digests of DreamBooth's 158 images: as published, and scaled to 512 x 512 (Lanczos, JPEG quality 92).
PACKAGED_DIGESTS = {"original": "original-sha256.txt", "scaled": "scaled-sha256.txt"}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Subject:
    """A benchmark's subject: its class word, its images in order of name, and the one that serves as the reference."""

    name: str
    class_word: str
    live: bool
    images: tuple[Path, ...]
    reference: Path
    palette_group: str | None = None

    def mask(self, image: Path) -> Path | None:
        """The path of the mask that lies beside `image` (IMAGE.mask.png), or None where there is none."""
        path = image.with_name(image.stem + MASK_SUFFIX)
        return path if path.is_file() else None

    def image_key(self, image: Path) -> str:
        """The key of a real image, `SUBJECT-STEM`, by which masks and embeddings of it are named."""
        return image_key(self.name, image.name)


@dataclass(frozen=True)
class Case:
    """One image to sample and to score: a subject, a prompt, and the position among the images of that prompt."""

    key: str
    subject: str
    prompt_index: int
    position: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class Benchmark:
    """A benchmark folder that was read: subjects in table order, and the two lists of prompts, with {class} in them.

    `digests` says what the images were compared with: "original", "scaled", "folder" (its own sha256.txt) or "none".
    """

    name: str
    folder: Path
    subjects: tuple[Subject, ...]
    object_prompts: tuple[str, ...]
    live_prompts: tuple[str, ...]
    digests: str

    @cached_property
    def by_name(self) -> dict[str, Subject]:
        """Subjects by their names."""
        return {subject.name: subject for subject in self.subjects}

    @property
    def images(self) -> list[Path]:
        """All real images, subject after subject."""
        return [image for subject in self.subjects for image in subject.images]

    def prompts(self, subject: Subject) -> list[str]:
        """The prompts of `subject`, of the list for its kind, with its class word in them."""
        templates = self.live_prompts if subject.live else self.object_prompts
        return [template.replace("{class}", subject.class_word) for template in templates]

    def cases(
        self, images_per_prompt: int = 4, seed: int = 0, subjects: int | None = None, prompts: int | None = None
    ) -> list[Case]:
        """Every case in order: subject, prompt, position; 30 x 25 x 4 = 3,000 for DreamBooth.

        Args:
            images_per_prompt: images a prompt, at least 1 (the paper's is 4).
            seed: the evaluation's seed; a case's own seed comes from it and the case's key alone.
            subjects, prompts: take only so many subjects, and prompts of each; spread over the lists, since neighbours
                are alike. None takes all.

        Raises:
            ValueError: when one of the numbers is below 1.
        """
        for label, number in [("images_per_prompt", images_per_prompt), ("subjects", subjects), ("prompts", prompts)]:
            if number is not None and number < 1:
                raise ValueError(f"{label} is {number}; it must be at least 1")
        found = []
        for subject in spread(self.subjects, subjects):
            for index, prompt in spread(list(enumerate(self.prompts(subject))), prompts):
                for position in range(images_per_prompt):
                    key = f"{subject.name}-{index:02d}-{position}"
                    found.append(Case(key, subject.name, index, position, prompt, case_seed(seed, key)))
        return found

    def wrong_reference(self, subject: Subject) -> Subject:
        """The subject whose reference stands in for that of `subject` in the wrong-reference baseline.

        The next one in the table (around its end) that is of the same class and shares no palette; where there is none,
        of the same class; else of the same kind, live or object; else any other.

        Raises:
            ValueError: when the benchmark has no other subject.
        """
        start = self.subjects.index(subject) + 1
        others = (*self.subjects[start:], *self.subjects[: start - 1])
        if not others:
            raise ValueError(f"{self.folder}: the only subject is {subject.name}; a wrong reference needs a second")

        def strangeness(other: Subject) -> tuple[bool, bool, bool]:
            same_palette = subject.palette_group is not None and other.palette_group == subject.palette_group
            return (other.class_word != subject.class_word, other.live != subject.live, same_palette)

        return min(others, key=strangeness)  # min takes the first of equals, so the order of the table decides


def case_seed(seed: int, key: str) -> int:
    """A case's seed, in [0, 2^32): of the evaluation's seed and the case's key, never of place or batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:4], "big")


def spread(items: Sequence[_T], count: int | None) -> list[_T]:
    """At most `count` of the items, evenly spread and in order; all of them for None."""
    if count is None or count >= len(items):
        return list(items)
    return [items[position * len(items) // count] for position in range(count)]


def load_benchmark(folder: str | Path, verify: bool = True) -> Benchmark:
    """Read a benchmark folder (this module's docstring has its layout), and check that it is whole and unaltered.

    Args:
        folder: the benchmark's folder.
        verify: compare every image with its digest where digests are known; False is for images that were scaled anew.

    Raises:
        FileNotFoundError: when the folder, a subject's folder or an image is missing; the message names them.
        ValueError: when a file cannot be parsed, the table and the prompts file disagree, there are images too many, or
            images differ from their digests; the message names them.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder}: no such folder; give the benchmark's, with {PROMPTS_FILE} in it; DreamBooth's own is brought "
            "by `dreamcache fetch-dreambooth`"
        )
    own_table = (folder / SUBJECTS_FILE).is_file()
    table = read_table(folder / SUBJECTS_FILE if own_table else PACKAGED / SUBJECTS_FILE)
    prompts = table.get("prompts")
    if (folder / PROMPTS_FILE).is_file():
        classes, found = read_prompts_and_classes(folder / PROMPTS_FILE)
        listed = {entry["name"]: entry["class"] for entry in table["subjects"]}
        if classes != listed:
            wrong = sorted(name for name in classes.keys() | listed.keys() if classes.get(name) != listed.get(name))
            raise ValueError(f"{folder / PROMPTS_FILE}: classes differ from the subject table for {some(wrong)}")
        if prompts is not None and prompts != found:
            raise ValueError(f"{folder / PROMPTS_FILE}: the prompts differ from those of the subject table")
        prompts = found
    if prompts is None:
        raise FileNotFoundError(f"{folder / PROMPTS_FILE} is missing, and {SUBJECTS_FILE} has no prompts")
    if own_table:
        path = folder / DIGESTS_FILE
        known = {"folder": read_digests(path)} if path.is_file() else {}
    else:
        known = {name: read_digests(PACKAGED / file) for name, file in PACKAGED_DIGESTS.items()}
    expected = next(iter(known.values()), None)  # the lists for one benchmark name the same files
    references = {entry["name"]: entry["reference"] for entry in table["subjects"]}
    images = find_images(folder, references, None if expected is None else expected.keys())
    digests = verify_images(folder, images, known) if verify and known else "none"
    subjects = tuple(
        Subject(
            name=entry["name"],
            class_word=entry["class"],
            live=entry["live"],
            images=tuple(images[entry["name"]]),
            reference=folder / entry["name"] / entry["reference"],
            palette_group=entry.get("palette_group"),
        )
        for entry in table["subjects"]
    )
    return Benchmark(table["benchmark"], folder, subjects, tuple(prompts["object"]), tuple(prompts["live"]), digests)
