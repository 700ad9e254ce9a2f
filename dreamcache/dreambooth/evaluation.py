"""An evaluation's shards: what each is made of, where it lies, and whether it is up to date. No model is loaded here.

An evaluation folder holds, a shard a subject (its number in the benchmark's table):

    images/VARIANT/00007.tar        KEY.png and KEY.json a case
    embeddings/VARIANT/00007.tar    KEY.safetensors (dino, clip, prompt: float32, unit length) and KEY.json a case
    embeddings/real/00007.tar       KEY.safetensors (dino, clip) and KEY.json a real image
    dinov2/...                      the same of DINOv2, where the evaluation names one
    pictures/VARIANT/00007.tar      KEY.jpg and KEY.json (subject: its noun): the images as a mask stage reads them
    masks/VARIANT/00007.tar         KEY.mask.png and KEY.json (box, score, ...): what the mask stage makes of them
    masked/VARIANT/00007.tar        KEY.safetensors (dino, clip) of the subject alone
    attention/00007.tar             where in the reference one image looks: KEY.generated.png, KEY.LAYER.png, KEY.json
    rows.jsonl  real.jsonl          one line a scored image; one line a pair of real images
    summary.json

The variants: "no-adapters" is the backbone alone; "adapters" sees the subject's reference; "wrong-reference" sees
another subject's and is scored against the right one; "ip-adapter" is the backbone with IP-Adapter; "copy-paste" is the
reference itself, put out for every prompt; "given" are images of whatever origin from a folder (see `given`). "real"
stands for the benchmark's own images.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from dreamcache.dreambooth.cases import Benchmark, Case, Subject, spread
from dreamcache.dreambooth.config import EMBEDDINGS, PREPROCESSING, EvaluationConfig, Variant
from dreamcache.dreambooth.references import Reference, file_digest
from shards.files import read_tar_records
from shards.stage import ShardPlan, StageSpec, plan_shard

IMAGES_VERSION = 1
EMBEDDINGS_VERSION = 1
PICTURES_VERSION = 1
ATTENTION_VERSION = 1
GALLERY_SUBJECTS = 10


@dataclass(frozen=True)
class Evaluation:
    """A benchmark, a configuration, the models and a folder: all that an evaluation's shards depend on.

    `models` maps "backbone", "adapters", "ip_adapter", "dino", "clip" and perhaps "dinov2" to the identities of their
    weights; the first three are needed by the variants that use them only. `mask_stage` is the stage that cuts subjects
    out, run by the caller on `mask_plan`; it serves masked metrics, and references that have no mask beside them.
    Without it such a reference is taken as it is, background and all, and the rows say so. `given` maps the keys of
    cases to image files. `real_folder` is for the shards of real images, where several evaluations share them.
    `attention` says of how many of the gallery's subjects attention maps are made. `block` are the numbers of the
    subjects that this is about, so that several processes share the work; None for all.
    """

    folder: Path
    benchmark: Benchmark
    config: EvaluationConfig
    models: Mapping[str, str]
    mask_stage: StageSpec | None = None
    given: Mapping[str, Path] | None = None
    real_folder: Path | None = None
    attention: int = 0
    block: range | None = None

    @property
    def subjects(self) -> list[Subject]:
        """The subjects that are evaluated, in order; those of the block where there is one."""
        return self._of_block(spread(self.benchmark.subjects, self.config.subjects))

    @property
    def gallery(self) -> list[Subject]:
        """The subjects whose images a report shows: by their places in the order, never by how they came out."""
        subjects = replace(self, block=None).subjects
        return subjects[:: max(1, len(subjects) // GALLERY_SUBJECTS)]

    @property
    def sampled_variants(self) -> list[Variant]:
        """The variants whose images have to be sampled."""
        return [variant for variant in self.config.variants if variant not in ("copy-paste", "given")]

    @property
    def masked(self) -> bool:
        """Whether masked metrics are scored."""
        return self.config.masked_metrics and self.mask_stage is not None

    @property
    def masked_variants(self) -> list[Variant]:
        """The variants whose subjects are cut out; copy-paste has the mask of its real image."""
        return [variant for variant in self.config.variants if self.masked and variant != "copy-paste"]

    @property
    def kinds(self) -> list[str]:
        """The kinds of embeddings of whole images, by `EMBEDDINGS`."""
        return [kind for kind, models in EMBEDDINGS.items() if all(name in self.models for name in models)]

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

    def shown(self, variant: str, subject: Subject) -> Subject | None:
        """The subject whose reference a variant shows to the backbone; None where it shows nothing."""
        if variant == "no-adapters":
            return None
        return self.benchmark.wrong_reference(subject) if variant == "wrong-reference" else subject

    def reference(self, variant: str, subject: Subject) -> Reference | None:
        """What a variant shows to the backbone for a subject; None where it shows nothing."""
        if (shown := self.shown(variant, subject)) is None:
            return None
        return Reference(shown.image_key(shown.reference), shown.reference, self.real_masks(shown)[shown.reference])

    def real_masks(self, subject: Subject) -> dict[Path, bytes | None]:
        """The masks of a subject's real images (PNG, L): those beside the images, else what the mask stage found."""
        beside = {image: subject.mask(image) for image in subject.images}
        made = any(plan.state() == "done" for plan in self._real_mask_plans(subject))
        found = self.found_masks(None, subject) if made else {}
        return {
            image: mask.read_bytes() if mask is not None else found.get(subject.image_key(image))
            for image, mask in beside.items()
        }

    def found_masks(self, variant: Variant | None, subject: Subject) -> dict[str, bytes]:
        """The stored masks by key, of images whose subject was found with a box score that suffices.

        Raises ValueError where the mask stage has not been run.
        """
        plan = self.mask_plan(variant, subject)
        if plan.state() != "done":
            raise ValueError(f"{plan.path}: masks not made yet, or by other settings; run the mask stage first")
        return {
            key: parts["mask.png"]
            for key, parts in read_tar_records(plan.path)
            if "mask.png" in parts and json.loads(parts["json"])["score"] >= self.config.min_box_score
        }

    def image_plan(self, variant: Variant, subject: Subject) -> ShardPlan:
        """The shard of a subject's sampled images."""
        models = {"backbone": self.models["backbone"]}
        sampling = self.config.sampling.model_dump(mode="json")
        shown, reference = self.shown(variant, subject), self.reference(variant, subject)
        waiting: list[ShardPlan] = []
        if shown is not None:
            name = "ip_adapter" if variant == "ip-adapter" else "adapters"
            models[name] = self.models[name]
            # Once the mask is known it is part of the reference's digest, and no other mask of its shard matters.
            waiting = [plan for plan in self._real_mask_plans(shown) if plan.state() != "done"]
        if variant in ("no-adapters", "ip-adapter"):
            del sampling["guidance"], sampling["image_guidance_scale"]  # they have no such branches
        if variant == "ip-adapter":
            sampling["ip_adapter_scale"] = self.config.ip_adapter_scale
        settings = {**self._case_settings(subject), "sampling": sampling, "dtype": self.config.dtype}
        settings["reference"] = None if reference is None else reference.digest
        return self._plan(f"images/{variant}", IMAGES_VERSION, settings, models, subject, waiting)

    def embedding_plan(self, variant: Variant | None, subject: Subject, kind: str = "embeddings") -> ShardPlan:
        """The shard of the embeddings of a subject's images, of its real ones for None; kinds are of `EMBEDDINGS`."""
        models = {name: self.models[name] for name in EMBEDDINGS[kind]}
        sources = [self.image_plan(variant, subject)] if variant in self.sampled_variants else []
        settings = {**self._files(variant, subject), "preprocessing": {name: PREPROCESSING[name] for name in models}}
        return self._plan(f"{kind}/{variant or 'real'}", EMBEDDINGS_VERSION, settings, models, subject, sources)

    def picture_plan(self, variant: Variant | None, subject: Subject) -> ShardPlan:
        """The shard of a subject's images as the mask stage reads them."""
        sources = [self.image_plan(variant, subject)] if variant in self.sampled_variants else []
        settings = {**self._files(variant, subject), "noun": subject.class_word}
        return self._plan(f"pictures/{variant or 'real'}", PICTURES_VERSION, settings, {}, subject, sources)

    def mask_plan(self, variant: Variant | None, subject: Subject) -> ShardPlan:
        """The shard that the mask stage makes of a subject's pictures."""
        assert self.mask_stage is not None
        spec = replace(self.mask_stage, name=f"masks/{variant or 'real'}")
        return self._shard(spec, subject, [self.picture_plan(variant, subject)])

    def masked_plan(self, variant: Variant | None, subject: Subject) -> ShardPlan:
        """The shard of the embeddings of a subject's images without their background."""
        models = {name: self.models[name] for name in EMBEDDINGS["embeddings"]}
        settings: dict[str, object] = {
            **self._files(variant, subject),
            "background": self.config.background,
            "min_box_score": self.config.min_box_score,
            "preprocessing": {name: PREPROCESSING[name] for name in models},
        }
        if variant is None:
            masks = self.real_masks(subject).items()
            settings["masks"] = {path.name: mask and hashlib.sha256(mask).hexdigest() for path, mask in masks}
            sources = self._real_mask_plans(subject)
        else:
            sources = [self.image_plan(variant, subject)] if variant in self.sampled_variants else []
            sources.append(self.mask_plan(variant, subject))
        return self._plan(f"masked/{variant or 'real'}", EMBEDDINGS_VERSION, settings, models, subject, sources)

    def attention_plan(self, subject: Subject) -> ShardPlan:
        """The shard of where the adapters' image of a subject's first case looks in the reference."""
        case, reference = self.cases(subject)[0], self.reference("adapters", subject)
        assert reference is not None
        masks = [self.mask_plan("adapters", subject)] if self.masked else []
        # Of the masks one alone matters, and once it is known its digest stands for it.
        waiting = [plan for plan in (*self._real_mask_plans(subject), *masks) if plan.state() != "done"]
        region = None if waiting else self.region(subject)
        settings = {
            "case": {"key": case.key, "prompt": case.prompt, "seed": case.seed}, "reference": reference.digest,
            "sampling": self.config.sampling.model_dump(mode="json"), "dtype": self.config.dtype,
            "region": region and hashlib.sha256(region).hexdigest(),
        }  # fmt: skip
        models = {name: self.models[name] for name in ("backbone", "adapters")}
        return self._plan("attention", ATTENTION_VERSION, settings, models, subject, waiting)

    def region(self, subject: Subject) -> bytes | None:
        """The mask (PNG) that the mask stage found in that image; None where it found none, or has not to be run."""
        return self.found_masks("adapters", subject).get(self.cases(subject)[0].key) if self.masked else None

    def attention_plans(self) -> list[tuple[Subject, ShardPlan]]:
        """The shards of attention maps: of the gallery's first subjects; none without adapters."""
        count = self.attention if "adapters" in self.config.variants else 0
        return [(subject, self.attention_plan(subject)) for subject in self._of_block(self.gallery[:count])]

    def image_plans(self) -> list[tuple[Variant, Subject, ShardPlan]]:
        """All shards of sampled images, in the order in which they are made."""
        return [(v, s, self.image_plan(v, s)) for v in self.sampled_variants for s in self.subjects]

    def embedding_plans(self, kind: str = "embeddings") -> list[tuple[Variant | None, Subject, ShardPlan]]:
        """All shards of embeddings of a kind in order; the variant None stands for the real images."""
        variants = [None, *self.config.variants]
        return [(v, s, self.embedding_plan(v, s, kind)) for v in variants for s in self.subjects]

    def mask_plans(self, real: bool) -> list[tuple[Variant | None, Subject, ShardPlan]]:
        """The shards of masks: of real images without one beside them, which come before sampling, or of the others."""
        if self.mask_stage is None:
            return []
        if real:  # a wrong reference may be of a subject that is not evaluated itself
            return [(None, s, p) for s in self._of_block(self.benchmark.subjects) for p in self._real_mask_plans(s)]
        return [(v, s, self.mask_plan(v, s)) for v in self.masked_variants for s in self.subjects]

    def masked_plans(self) -> list[tuple[Variant | None, Subject, ShardPlan]]:
        """All shards of embeddings without background."""
        variants = [None, *self.masked_variants] if self.masked else []
        return [(v, s, self.masked_plan(v, s)) for v in variants for s in self.subjects]

    def score_plans(self) -> list[ShardPlan]:
        """The shards that the rows are computed from."""
        plans = [plan for kind in self.kinds for *_, plan in self.embedding_plans(kind)]
        return plans + [plan for *_, plan in self.masked_plans()]

    def plans(self) -> list[ShardPlan]:
        """All shards in the order in which they are made, pictures aside, which come with their masks."""
        parts = (self.mask_plans(True), self.image_plans(), self.mask_plans(False), self.attention_plans())
        return [plan for part in parts for *_, plan in part] + self.score_plans()

    def changes(self) -> list[str]:
        """Why shards have to be made, one line a reason; empty when all is up to date."""
        return [line for plan in self.plans() for line in plan.changes()]

    def _of_block(self, subjects: Sequence[Subject]) -> list[Subject]:
        return [s for s in subjects if self.block is None or self.benchmark.subjects.index(s) in self.block]

    def _real_mask_plans(self, subject: Subject) -> list[ShardPlan]:
        """The shard of the masks of a subject's real images; none where they all lie beside them."""
        beside = all(subject.mask(image) for image in subject.images)
        return [] if beside or self.mask_stage is None else [self.mask_plan(None, subject)]

    def _case_settings(self, subject: Subject) -> dict[str, object]:
        prompts = {f"{case.prompt_index:02d}": case.prompt for case in self.cases(subject)}
        return {"prompts": prompts, "images_per_prompt": self.config.images_per_prompt, "seed": self.config.seed}

    def _files(self, variant: Variant | None, subject: Subject) -> dict[str, object]:
        """What a shard of images that were not sampled depends on: the cases, and the files by digest."""
        if variant is None:
            return {"images": {subject.image_key(image): file_digest(image) for image in subject.images}}
        if variant == "copy-paste":
            return {**self._case_settings(subject), "reference": file_digest(subject.reference)}
        if variant == "given":
            assert self.given is not None
            digests = {case.key: file_digest(self.given[case.key]) for case in self.cases(subject)}
            return {**self._case_settings(subject), "images": digests}
        return {}

    def _plan(
        self, name: str, version: int, settings: Mapping[str, object], models: Mapping[str, str], subject: Subject,
        sources: Sequence[ShardPlan] = (),
    ) -> ShardPlan:  # fmt: skip
        spec = StageSpec(name, version, {"subject": subject.name, **settings}, models, suffix=".tar")
        return self._shard(spec, subject, sources)

    def _shard(self, spec: StageSpec, subject: Subject, sources: Sequence[ShardPlan]) -> ShardPlan:
        folder = (self.real_folder if spec.name.endswith("/real") else None) or self.folder
        plan = plan_shard(folder, spec, self.benchmark.subjects.index(subject), [source.path for source in sources])
        # Finished shards of other settings are no input either.
        waiting = [source for source in sources if source.state() != "done"]
        return replace(plan, unfinished=tuple(f"{source.name}{source.spec.suffix}" for source in waiting))
