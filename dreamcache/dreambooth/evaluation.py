"""An evaluation's shards: what each is made of, where it lies, and whether it is up to date. No model is loaded here.

An evaluation folder holds, a shard a subject (its number in the benchmark's table):

    images/VARIANT/00007.tar        KEY.png and KEY.json a case
    embeddings/VARIANT/00007.tar    KEY.safetensors (dino, clip, prompt: float32, unit length) and KEY.json a case
    embeddings/real/00007.tar       KEY.safetensors (dino, clip) and KEY.json a real image
    rows.jsonl  real.jsonl          one line a scored image; one line a pair of real images
    summary.json

The variants: "no-adapters" is the backbone alone; "adapters" sees the subject's reference; "wrong-reference" sees
another subject's and is scored against the right one; "copy-paste" is the reference itself, put out for every prompt.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from dreamcache.dreambooth.cases import Benchmark, Case, Subject, spread
from dreamcache.dreambooth.config import PREPROCESSING, EvaluationConfig, Variant
from shards.stage import ShardPlan, StageSpec, plan_shard

IMAGES_VERSION = 1
EMBEDDINGS_VERSION = 1


@dataclass(frozen=True)
class Reference:
    """A reference as stored: the image's file, its mask as the bytes of an image file (None: no mask), its key."""

    key: str
    path: Path
    mask: bytes | None

    @property
    def digest(self) -> str:
        """The sha256 over image and mask."""
        total = hashlib.sha256(self.path.read_bytes())
        total.update(b"mask" + self.mask if self.mask is not None else b"no mask")
        return total.hexdigest()


@dataclass(frozen=True)
class Evaluation:
    """A benchmark, a configuration, the models and a folder: all that an evaluation's shards depend on.

    `models` maps "backbone", "adapters", "dino" and "clip" to the identities of their weights; "adapters" is needed by
    the variants that use them only. `masks` maps the keys of real images (`Subject.image_key`) to subject masks (the
    bytes of a PNG, L, the image's size); masks beside the benchmark's images serve where it has none. A reference
    without a mask is taken as it is, background and all, and the rows say so.
    """

    folder: Path
    benchmark: Benchmark
    config: EvaluationConfig
    models: Mapping[str, str]
    masks: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def subjects(self) -> list[Subject]:
        """The subjects that are evaluated, in order."""
        return spread(self.benchmark.subjects, self.config.subjects)

    @property
    def sampled_variants(self) -> list[Variant]:
        """The variants whose images have to be sampled."""
        return [variant for variant in self.config.variants if variant != "copy-paste"]

    def cases(self, subject: Subject) -> list[Case]:
        """The cases of one subject, the same for all variants."""
        return self._cases[subject.name]

    @cached_property
    def _cases(self) -> dict[str, list[Case]]:
        config = self.config
        cases: dict[str, list[Case]] = {}
        for case in self.benchmark.cases(config.images_per_prompt, config.seed, config.subjects, config.prompts):
            cases.setdefault(case.subject, []).append(case)
        return cases

    def reference(self, variant: str, subject: Subject) -> Reference | None:
        """What a variant shows to the backbone for a subject; None where it shows nothing."""
        if variant == "no-adapters":
            return None
        shown = self.benchmark.wrong_reference(subject) if variant == "wrong-reference" else subject
        key = shown.image_key(shown.reference)
        mask = self.masks.get(key)
        if mask is None and (path := shown.mask(shown.reference)) is not None:
            mask = path.read_bytes()
        return Reference(key, shown.reference, mask)

    def image_plan(self, variant: Variant, subject: Subject) -> ShardPlan:
        """The shard of a subject's sampled images."""
        models = {"backbone": self.models["backbone"]}
        sampling = self.config.sampling.model_dump(mode="json")
        reference = self.reference(variant, subject)
        if reference is not None:
            models["adapters"] = self.models["adapters"]
        else:
            del sampling["guidance"], sampling["image_guidance_scale"]  # the backbone alone has no such branches
        settings = {
            **self._case_settings(subject),
            "sampling": sampling,
            "reference": None if reference is None else reference.digest,
        }
        return self._plan(f"images/{variant}", IMAGES_VERSION, settings, models, subject)

    def embedding_plan(self, variant: Variant, subject: Subject) -> ShardPlan:
        """The shard of the embeddings of a subject's images; those of copy-paste need no sampled images."""
        name, models = f"embeddings/{variant}", self._embedders
        if variant == "copy-paste":
            reference = hashlib.sha256(subject.reference.read_bytes()).hexdigest()
            settings = {**self._case_settings(subject), "reference": reference, "preprocessing": PREPROCESSING}
            return self._plan(name, EMBEDDINGS_VERSION, settings, models, subject)
        images = self.image_plan(variant, subject)
        plan = self._plan(name, EMBEDDINGS_VERSION, {"preprocessing": PREPROCESSING}, models, subject, [images.path])
        if images.state() != "done":  # finished images of other settings are no input either
            plan = replace(plan, unfinished=(images.path.relative_to(self.folder).as_posix(),))
        return plan

    def real_plan(self, subject: Subject) -> ShardPlan:
        """The shard of the embeddings of a subject's real images."""
        digests = {subject.image_key(image): hashlib.sha256(image.read_bytes()).hexdigest() for image in subject.images}
        settings = {"images": digests, "preprocessing": PREPROCESSING}
        return self._plan("embeddings/real", EMBEDDINGS_VERSION, settings, self._embedders, subject)

    def image_plans(self) -> list[tuple[Variant, Subject, ShardPlan]]:
        """All shards of sampled images, in the order in which they are made."""
        return [(v, s, self.image_plan(v, s)) for v in self.sampled_variants for s in self.subjects]

    def embedding_plans(self) -> list[tuple[Variant | None, Subject, ShardPlan]]:
        """All shards of embeddings in order; the variant None stands for the real images."""
        real: list[tuple[Variant | None, Subject, ShardPlan]] = [(None, s, self.real_plan(s)) for s in self.subjects]
        return real + [(v, s, self.embedding_plan(v, s)) for v in self.config.variants for s in self.subjects]

    def changes(self) -> list[str]:
        """Why shards have to be made, one line a reason; empty when all images and embeddings are up to date."""
        plans = [plan for *_, plan in (*self.image_plans(), *self.embedding_plans())]
        return [line for plan in plans for line in plan.changes()]

    @property
    def _embedders(self) -> dict[str, str]:
        return {name: self.models[name] for name in ("dino", "clip")}

    def _case_settings(self, subject: Subject) -> dict[str, object]:
        prompts = {f"{case.prompt_index:02d}": case.prompt for case in self.cases(subject)}
        config = self.config
        return {"prompts": prompts, "images_per_prompt": config.images_per_prompt, "seed": config.seed}

    def _plan(
        self, name: str, version: int, settings: Mapping[str, object], models: Mapping[str, str], subject: Subject,
        inputs: Sequence[Path] = (),
    ) -> ShardPlan:  # fmt: skip
        spec = StageSpec(name, version, {"subject": subject.name, **settings}, models, suffix=".tar")
        return plan_shard(self.folder, spec, self.benchmark.subjects.index(subject), inputs)
