"""Accounts of a whole dataset whose models fail in every way: nothing is lost, nothing doubled, each reason counted.

DREAMCACHE_FAULT_CAPTIONS sets how many captions; `make faults` takes 20,000.
"""

import json
import os
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datagen.block import Block
from datagen.caption_index import CaptionIndex
from datagen.captions import CaptionsConfig
from datagen.config import Execution
from datagen.dataset import STAGES, Dataset, DatasetConfig
from datagen.dedup import DedupConfig
from datagen.gates import GatesConfig
from datagen.images import ImagesConfig
from datagen.masks import Box, MasksConfig, ProposedMasks, ScoredBox
from shards.files import read_json_lines, read_tar_records
from shards.markers import rejects_path
from shards.triplets import read_triplets

BATCH = 13  # records at a time
COUNT = int(os.environ.get("DREAMCACHE_FAULT_CAPTIONS", 800))
SHARDS = 4
SIDE = 32
TAXONOMY = {"classes": ["teapot", "dog", "rc car"], "places": ["on a beach", "in a forest"]}
ODD_TEXTS = [
    "它在海滩上",
    "на пляже",
    'said "hello" \\ and {left}',
    "two\nlines\tand a tab",
    "💡 | <b> %s \u202e",
    "'; --",
]


class Writer:
    """A language model that breaks every other reply, and remembers how; the others are of words drawn anew."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.good: list[str] = []
        self.said: set[str] = set()

    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        replies = [self._reply(prompt, random.Random(seed)) for prompt, seed in zip(prompts, seeds, strict=True)]
        self.said.update(replies)
        return replies

    def _reply(self, prompt: str, draw: random.Random) -> str:
        noun = prompt.split("\n")[0].removeprefix("Subject: ")
        words = " ".join(f"word{draw.randrange(10**6)}" for _ in range(6))
        caption = f"a {noun} {words} {draw.choice(ODD_TEXTS)}"
        reply: dict[str, Any] = {"subject": noun, "class": noun, "caption": caption}
        whole = json.dumps(reply)
        broken = {
            "empty reply": draw.choice(["", " \n"]),
            "no JSON object": f"Sure! {caption.replace('{', '')}",
            "broken JSON": whole[: draw.randrange(whole.index('"caption"'), len(whole) - 1)],
            "no caption": json.dumps(reply | {"caption": [caption]}),
            "empty subject": json.dumps(reply | {"subject": "\u3000"}),
            "characters that are not text": json.dumps(reply | {"caption": f"{caption}\x00\x1b[2J"}),
            "caption too long": json.dumps(reply | {"caption": f"a {noun} " + "very " * 2_000}),
            "subject not in caption": json.dumps(reply | {"caption": f"茶壶在海滩上 {words}"}),
            "another subject than asked for": json.dumps({"subject": "owl", "class": "bird", "caption": "an owl"}),
            "too few words": json.dumps(reply | {"caption": noun}),
            "too many words": json.dumps(reply | {"caption": f"a {noun} " + "so " * 90}),
            "blocked word": json.dumps(reply | {"caption": f"a {noun} {words} with two Shot-Guns"}),
        }
        if self.good and draw.random() < 0.1:
            earlier = draw.choice(self.good)
            if f'"{noun}"' in earlier:
                return earlier if draw.random() < 0.5 else f'{earlier[:-2]} again"}}'
        if draw.random() < 0.5:
            reason = draw.choice(list(broken))
            self.faults[reason] += 1
            return broken[reason]
        if draw.random() < 0.1:
            whole = json.dumps(reply | {"subject": "茶壶", "caption": f"茶壶 {words} 在海滩上"})
        self.good.append(whole)
        return whole


IMAGE_FAULTS = ["image not finite", "black image", "flat image", "unsafe image"]
# What is to go wrong with a mask, and the reason that it is rejected under.
MASK_FAULTS = {
    "no box": "no box",
    "weak box": "low box score",
    "two subjects": "several subjects",
    "full mask": "subject too large",
    "empty mask": "subject too small",
    "mask at the border": "touches the border",
    "doubtful mask": "low predicted IoU",
    "score not finite": "low predicted IoU",
}
# The finder and the cutter see nothing but pixels, so the painter says by brightness what is to go wrong.
DARKEST, STEP = 0.2, 0.08


def fate(caption: str) -> int:
    return zlib.crc32(caption.encode()) % 20


class Painter:
    def paint(self, captions: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        made = []
        for caption in captions:
            number = fate(caption)
            noise = np.random.default_rng(number).uniform(-0.05, 0.05, (SIDE, SIDE, 3))
            image = DARKEST + STEP * min(max(number - 4, 0), len(MASK_FAULTS)) + noise
            made.append([image * np.nan, image * 0, image * 0 + 0.5, image][min(number, 3)])
        return np.stack(made)

    def unsafe(self, images: np.ndarray) -> list[bool]:
        return [bool(image.mean() < DARKEST + STEP / 2 and self.flagged(image)) for image in images]

    @staticmethod
    def flagged(image: np.ndarray) -> bool:
        own = DARKEST + np.random.default_rng(3).uniform(-0.05, 0.05, (SIDE, SIDE, 3))
        return bool(np.allclose(image, own))


class FinderAndCutter:
    def find(self, images: Sequence[Image.Image], nouns: Sequence[str]) -> list[list[ScoredBox]]:
        kinds = [*MASK_FAULTS, "none"]
        self.kinds = [kinds[round((np.asarray(image).mean() / 255 - DARKEST) / STEP)] for image in images]
        whole, other = ScoredBox((4, 4, 16, 16), 0.9), ScoredBox((18, 18, 30, 30), 0.5)
        boxes = {"no box": [], "weak box": [ScoredBox(whole.box, 0.1)], "two subjects": [whole, other]}
        return [boxes.get(kind, [whole]) for kind in self.kinds]

    def cut(self, images: Sequence[Image.Image], boxes: Sequence[Box]) -> list[ProposedMasks]:
        found = []
        for kind in (kind for kind in self.kinds if kind != "no box"):
            mask = np.zeros((1, SIDE, SIDE), dtype=bool)
            mask[0, 4:16, 4:16] = True
            if kind in ("full mask", "empty mask"):
                mask[:] = kind == "full mask"
            if kind == "mask at the border":
                mask[0, :, :8] = True
            found.append(ProposedMasks(mask, [{"doubtful mask": 0.1, "score not finite": np.nan}.get(kind, 0.9)]))
        return found


class FailingBlock(Block):
    """A block whose models are the failing ones."""

    writer = Writer()

    def _engine_of(self, stage: str) -> Any:
        self._execution = {"batch_size": BATCH}
        if stage == "dedup":
            self._engine = self._engine or CaptionIndex(self.dataset.config.dedup)
            return self._engine
        self._engine = None
        masks = FinderAndCutter()
        return {"captions": self.writer, "images": Painter(), "masks": (masks, masks)}.get(stage)


def keys_of(path: Path) -> list[str]:
    if path.suffix == ".tar":
        return [key for key, _ in read_tar_records(path)]
    return [record["key"] for record in read_json_lines(path)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("faults")
    (folder / "model.json").write_text("{}")
    (folder / "taxonomy.json").write_text(json.dumps(TAXONOMY))
    model, execution = str(folder / "model.json"), Execution(batch_size=BATCH)
    config = DatasetConfig(
        captions_per_shard=COUNT // SHARDS,
        shards=SHARDS,
        captions=CaptionsConfig(model=model, taxonomy=str(folder / "taxonomy.json"), execution=execution),
        dedup=DedupConfig(max_class_share=1, max_class_and_place_share=1, blocked_words=("shot gun",)),
        images=ImagesConfig(model=model, execution=execution),
        masks=MasksConfig(box_model=model, mask_model=model, execution=execution),
        gates=GatesConfig(max_subjects=1, max_border=0.5),
    )
    dataset = Dataset(config, folder / "run")
    block = FailingBlock(dataset)
    for stage in STAGES:
        for index in range(SHARDS):
            assert block.make(stage, index, lambda done, total: None) is not None
    return dataset


def rejected(dataset: Dataset, stage: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for marker in dataset.markers(stage, range(SHARDS)):
        total.update(marker.rejected)
    return total


def test_what_enters_a_stage_leaves_it_or_is_rejected(dataset: Dataset) -> None:
    for index in range(SHARDS):
        entered = [f"{index:05d}-{position:05d}" for position in range(COUNT // SHARDS)]
        for stage in STAGES:
            path = dataset.path(stage, index)
            (marker,) = dataset.markers(stage, [index])
            left, out = keys_of(path), list(read_json_lines(rejects_path(path)))
            assert sorted([*left, *(record["key"] for record in out)]) == entered, f"{stage}/{index}"
            assert (marker.records_in, marker.records_out) == (len(entered), len(left))
            assert marker.rejected == Counter(record["reason"] for record in out)
            entered = left


def test_each_reason_is_counted(dataset: Dataset) -> None:
    in_captions = {
        reason: count
        for reason, count in FailingBlock.writer.faults.items()
        if reason not in ("too few words", "too many words", "blocked word")
    }
    assert rejected(dataset, "captions") == in_captions and len(in_captions) == 9
    in_dedup = rejected(dataset, "dedup")
    duplicates = {reason: in_dedup.pop(reason) for reason in ("exact duplicate", "near duplicate")}
    assert all(duplicates.values())
    assert set(in_dedup) == {"too few words", "too many words", "blocked word"}
    for reason, count in in_dedup.items():
        # Of two that are too short or blocked, none is in the index: all are counted under their own reason.
        assert count == FailingBlock.writer.faults[reason], reason

    kept = [record for index in range(SHARDS) for record in read_json_lines(dataset.path("dedup", index))]
    fates = Counter(fate(record["caption"]) for record in kept)
    assert rejected(dataset, "images") == {reason: fates[n] for n, reason in enumerate(IMAGE_FAULTS) if fates[n]}
    assert rejected(dataset, "masks") == {}
    expected: Counter[str] = Counter()
    for n, reason in enumerate(MASK_FAULTS.values(), 4):
        expected[reason] += fates[n]
    assert rejected(dataset, "gates") == expected and all(expected.values())


def test_near_duplicates_name_the_caption_that_they_repeat(dataset: Dataset) -> None:
    kept = {
        record["key"]: record["caption"] for n in range(SHARDS) for record in read_json_lines(dataset.path("dedup", n))
    }
    found = [one for n in range(SHARDS) for one in read_json_lines(rejects_path(dataset.path("dedup", n)))]
    matched = [one["matched"] for one in found if "duplicate" in one["reason"]]
    assert matched and all(kept[one["key"]] == one["caption"] for one in matched)


def test_what_the_model_wrote_is_kept_with_each_reject(dataset: Dataset) -> None:
    paths = [rejects_path(dataset.path("captions", index)) for index in range(SHARDS)]
    written = [record["raw"] for path in paths for record in read_json_lines(path)]
    assert written and set(written) <= FailingBlock.writer.said
    assert max(map(len, written)) > 10_000 and any("\\u0000" in text for text in written)


def test_odd_texts_reach_the_triplets_as_they_were_written(dataset: Dataset) -> None:
    triplets = list(read_triplets([dataset.path("triplets", index) for index in range(SHARDS)]))
    assert len(triplets) > COUNT / 10
    for triplet in triplets:
        assert triplet.caption == " ".join(json.loads(triplet.record["raw"])["caption"].split())
    together = "".join(triplet.caption for triplet in triplets)
    assert all(" ".join(text.split()) in together for text in ODD_TEXTS)
    assert any(triplet.record["subject"] == "茶壶" for triplet in triplets)
