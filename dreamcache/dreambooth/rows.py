"""One row an image and one a pair of real images, from stored embeddings alone; no model is loaded."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from dreamcache.dreambooth.cases import Subject
from dreamcache.dreambooth.config import PREPROCESSING, Variant
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.metrics import diversity, image_similarity, pair_similarity, text_similarity
from shards.files import read_tar_records
from shards.stage import ShardPlan

Embeddings = dict[str, dict[str, NDArray[np.float32]]]  # by key, by name
# The embedding that each similarity to real images is the cosine of.
PLAIN = {"dino": "dino", "clip_i": "clip"}
MASKED = {"mdino": "dino", "mclip_i": "clip"}


def score_cases(evaluation: Evaluation) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """One row an image and one a pair of real images, from the stored embeddings alone.

    A row holds variant, case, subject, class, live, palette_shared (another subject of the benchmark has its palette),
    palette_group (that palette's name, None where it is not shared), prompt_index, position, prompt, seed, reference
    (the key of the image shown to the backbone, None: none), reference_masked, references (how many real images it was
    scored against), dino, clip_i, clip_t; and benchmark, digests, protocol, preprocessing and models, which say what
    the numbers are. Where they were asked for also mdino, mclip_i (None: the subject was not found), masked_references
    and masking (the mask stage's models and settings, the least box score, the background); dinov2; and, with several
    images a prompt, diversity.

    Raises:
        ValueError: when embeddings are missing or belong to other settings.
    """
    rows: list[dict[str, Any]] = []
    real_rows: list[dict[str, Any]] = []
    benchmark, protocol = evaluation.benchmark, {"protocol": evaluation.config.protocol}
    models = {name: identity for name, identity in evaluation.models.items() if name in PREPROCESSING}
    names: dict[str, Any] = {"benchmark": benchmark.name, "digests": benchmark.digests}
    names["preprocessing"] = {name: PREPROCESSING[name] for name in sorted(models)}
    if evaluation.masked:
        names["masking"] = masking(evaluation)
    groups: Counter[str | None] = Counter(
        subject.palette_group for subject in benchmark.subjects if subject.palette_group is not None
    )
    for subject in evaluation.subjects:
        shared = groups[subject.palette_group] > 1
        about = {
            "subject": subject.name,
            "class": subject.class_word,
            "live": subject.live,
            "palette_shared": shared,
            "palette_group": subject.palette_group if shared else None,
        }
        real = _Scored(evaluation, None, subject)
        for pair, scores in real.pairs():
            real_rows.append({**about, "pair": pair, **scores, **names, "models": models})
        for variant in evaluation.config.variants:
            scored = _Scored(evaluation, variant, subject)
            made_by = {}
            if variant in evaluation.sampled_variants:
                made_by = dict(evaluation.image_plan(variant, subject).spec.models)
            for record, scores in scored.against(real):
                key = record.pop("key")
                rows.append(
                    {"variant": variant, "case": key, **about, **record, **scores, **names, **protocol}
                    | {"models": {**models, **made_by}}
                )
    return rows, real_rows


def masking(evaluation: Evaluation) -> dict[str, Any]:
    """What masked metrics were made with: the mask stage's models and settings, and what was done with its masks."""
    stage, config = evaluation.mask_stage, evaluation.config
    assert stage is not None
    beside = all(subject.mask(image) for subject in evaluation.subjects for image in subject.images)
    settings = {**stage.settings, "min_box_score": config.min_box_score, "background": config.background}
    settings["real_masks"] = "the benchmark's own" if beside else "the mask stage's where the benchmark has none"
    # In the form and order in which it is read back from a row.
    return dict(json.loads(json.dumps({"models": dict(stage.models), "settings": settings}, sort_keys=True)))


class _Scored:
    """The stored embeddings of one subject's images of one variant, or of its real images for None."""

    def __init__(self, evaluation: Evaluation, variant: Variant | None, subject: Subject) -> None:
        self.evaluation, self.variant, self.subject = evaluation, variant, subject
        self.records, self.plain = _read(evaluation.embedding_plan(variant, subject))
        self.dinov2: Embeddings = {}
        if "dinov2" in evaluation.kinds:
            self.dinov2 = _read(evaluation.embedding_plan(variant, subject, "dinov2"))[1]
        self.masked: Embeddings = {}
        if evaluation.masked and variant != "copy-paste":
            self.masked = _read(evaluation.masked_plan(variant, subject))[1]
        if variant is None:
            keys = [subject.image_key(path) for path in subject.images]
            if missing := [key for key in keys if key not in self.plain]:
                raise ValueError(f"the real image {missing[0]} has no finite embedding; it cannot be scored against")

    def pairs(self) -> list[tuple[list[str], dict[str, float | None]]]:
        """All distinct pairs of real images with their similarities."""
        keys = list(self.plain)
        scores: dict[tuple[str, str], dict[str, float | None]] = {}
        for columns, embeddings in self._tables():
            known = [key for key in keys if key in embeddings]
            for column, name in columns.items():
                found = pair_similarity(_stack(embeddings, name, known)) if known else []
                values = {(known[i], known[j]): value for i, j, value in found}
                for number, first in enumerate(keys):
                    for second in keys[number + 1 :]:
                        scores.setdefault((first, second), {})[column] = values.get((first, second))
        return [(list(pair), values) for pair, values in scores.items()]

    def against(self, real: "_Scored") -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Every image's record and scores, against the real images that the protocol takes."""
        keys = list(real.plain)
        if self.evaluation.config.protocol == "one-reference":
            keys = [self.subject.image_key(self.subject.reference)]
        mine = list(self.plain)
        if not mine:
            return []  # all of them rejected: the accounts say so
        if self.variant == "copy-paste":  # the reference, and so its mask, in every case's place
            alone = real.masked.get(self.subject.image_key(self.subject.reference))
            self.masked = {} if alone is None else dict.fromkeys(mine, alone)
        columns: dict[str, dict[str, Any]] = {"references": dict.fromkeys(mine, len(keys))}
        for (names, embeddings), (_, references) in zip(self._tables(), real._tables(), strict=True):
            targets, known = [key for key in keys if key in references], [key for key in mine if key in embeddings]
            if embeddings is self.masked:
                columns["masked_references"] = dict.fromkeys(mine, len(targets))
            for column, name in names.items():
                columns[column] = dict.fromkeys(mine)
                if targets and known:
                    similarity = image_similarity(_stack(embeddings, name, known), _stack(references, name, targets))
                    columns[column] |= zip(known, map(float, similarity), strict=True)
        clip, prompts = _stack(self.plain, "clip", mine), _stack(self.plain, "prompt", mine)
        columns["clip_t"] = dict(zip(mine, map(float, text_similarity(clip, prompts)), strict=True))
        if self.evaluation.config.images_per_prompt > 1:
            groups = [self.records[key]["prompt_index"] for key in mine]
            columns["diversity"] = dict(zip(mine, diversity(_stack(self.plain, "dino", mine), groups), strict=True))
        return [(dict(self.records[key]), {name: values[key] for name, values in columns.items()}) for key in mine]

    def _tables(self) -> list[tuple[Mapping[str, str], Embeddings]]:
        """The scores' columns with what they are scores of, kind by kind."""
        tables: list[tuple[Mapping[str, str], Embeddings]] = [(PLAIN, self.plain)]
        if "dinov2" in self.evaluation.kinds:
            tables.append(({"dinov2": "dinov2"}, self.dinov2))
        if self.evaluation.masked:
            tables.append((MASKED, self.masked))
        return tables


def _stack(embeddings: Embeddings, name: str, keys: Sequence[str]) -> NDArray[np.float32]:
    return np.stack([embeddings[key][name] for key in keys])


def _read(plan: ShardPlan) -> tuple[dict[str, dict[str, Any]], Embeddings]:
    """Records and embeddings of a shard by key; strict about its being up to date."""
    if changes := plan.changes():
        raise ValueError(f"{plan.path}: not embedded yet, or by other settings ({changes[0]}); run embed_cases first")
    parts = dict(read_tar_records(plan.path))
    return (
        {key: json.loads(content["json"]) for key, content in parts.items()},
        {key: load(content["safetensors"]) for key, content in parts.items()},
    )
