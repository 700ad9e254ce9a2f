"""Sampling an evaluation's images: one shard a subject and variant, each resumable on its own."""

import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamcache.dreambooth.cases import Case, Subject
from dreamcache.dreambooth.config import Variant
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.references import shown_reference
from shards.memory import in_batches
from shards.stage import ShardPlan

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreamcache.adapters import AdapterSet
    from dreamcache.backbone import Backbone
    from dreamcache.cache import FeatureCache

Report = Callable[[dict[str, Any]], None]
# Images sampled at a time, of several subjects where these have few; fewer where a GPU's memory does not hold them. It
# changes images by rounding only.
BATCH = 8


def generate_cases(
    evaluation: Evaluation,
    backbone: "Backbone",
    adapters: "AdapterSet | None",
    report: Report | None = None,
    ip_adapter: str | Path | None = None,
) -> int:
    """Sample the images of all shards that are not up to date; returns the number of shards made.

    Args:
        evaluation: what to sample, and where to.
        backbone, adapters: the models whose identities the evaluation names; adapters may be None where no variant uses
            them.
        report: called after each shard with stage, variant, subject, done, total and made (False: it was up to date).
        ip_adapter: where IP-Adapter lies, for the variant of that name.

    Raises:
        ValueError: when a variant needs adapters and there are none, a reference's mask does not fit it, or the
            backbone is not in the evaluation's dtype.
    """
    backbone.require_dtype(evaluation.config.dtype, "evaluation")
    made = 0
    plans = evaluation.image_plans()
    with ExitStack() as stack:
        pipeline, sampler = None, None
        for done, (variant, subject, plan) in enumerate(plans, start=1):
            if stale := plan.state() != "done":
                if variant == "ip-adapter" and pipeline is None:
                    pipeline = stack.enter_context(_ip_adapted(evaluation, backbone, ip_adapter))
                elif variant != "ip-adapter" and pipeline is not None:
                    stack.close()  # the others see the U-Net without it
                    pipeline = None
                if sampler is None or sampler.variant != variant:
                    sampler = _Sampler(evaluation, variant, backbone, adapters, pipeline)
                _write_shard(evaluation, subject, plan, sampler)
                made += 1
            if report is not None:
                report(
                    {"stage": "images", "variant": variant, "subject": subject.name, "done": done, "total": len(plans)}
                    | {"made": stale}
                )
    return made


def _ip_adapted(evaluation: Evaluation, backbone: "Backbone", location: str | Path | None) -> Any:
    from dreamcache.dreambooth.ip_adapter import ip_adapted

    if location is None:
        raise ValueError("the variant ip-adapter needs IP-Adapter; say where it lies, or take it out of the variants")
    return ip_adapted(backbone, location, evaluation.config.ip_adapter_scale)


class _Sampler:
    """Samples a variant's images, those of several subjects at once where a batch holds them.

    Which subjects share a batch depends on their places alone, so that an image is the same, to the last bit, whichever
    shards are there already and whichever process makes it.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        variant: Variant,
        backbone: "Backbone",
        adapters: "AdapterSet | None",
        ip_adapter: Any,
    ) -> None:
        if variant not in ("no-adapters", "ip-adapter") and adapters is None:
            raise ValueError(f"the variant {variant} needs adapters; give them, or take it out of the variants")
        self.variant = variant
        self.execution: dict[str, Any] = {"batch_size": BATCH, "device": str(backbone.device)}
        self._evaluation, self._backbone, self._adapters = evaluation, backbone, adapters
        self._ip_adapter = ip_adapter
        self._waiting: dict[str, Image] = {}

    def images(self, subject: Subject) -> "list[Image]":
        """The images of a subject's cases, in their order."""
        cases = self._evaluation.cases(subject)
        if cases[0].key not in self._waiting:
            self._waiting = self._sampled(self._together(subject))
        return [self._waiting.pop(case.key) for case in cases]

    def _together(self, subject: Subject) -> list[Subject]:
        """The subjects that are sampled with this one: of all that are evaluated, not of the block alone."""
        subjects = replace(self._evaluation, block=None).subjects
        most = max(len(self._evaluation.cases(one)) for one in subjects)
        size = 1 if self.variant == "ip-adapter" else max(1, BATCH // most)
        place = subjects.index(subject)
        return subjects[place - place % size :][:size]

    def _sampled(self, subjects: Sequence[Subject]) -> "dict[str, Image]":
        """The images of subjects by their cases' keys."""
        references = [self._reference(subject) for subject in subjects]
        caches = [self._cache(*pair) for pair in zip(subjects, references, strict=True)]
        cases = [(case, place) for place, subject in enumerate(subjects) for case in self._evaluation.cases(subject)]
        self.execution["batch_size"] = BATCH

        def sample(batch: Sequence[tuple[Case, int]]) -> "list[Image]":
            from dreamcache.cache import FeatureCache
            from dreamcache.sampling import sample_images

            prompts, seeds = [case.prompt for case, _ in batch], [case.seed for case, _ in batch]
            config = self._evaluation.config.sampling
            if self.variant == "ip-adapter":
                from dreamcache.dreambooth.ip_adapter import sample_ip_adapter

                assert references[0] is not None
                return sample_ip_adapter(self._ip_adapter, references[0], prompts, config, seeds)
            shown = [cache for _, place in batch if (cache := caches[place]) is not None]
            alone = len({place for _, place in batch}) == 1
            cache = None if not shown else shown[0] if alone else FeatureCache.stack(shown)
            adapters = None if cache is None else self._adapters
            return sample_images(self._backbone, adapters, cache, prompts, config, seeds=seeds, batch_size=len(batch))

        batches = in_batches(cases, self.execution, sample)
        return {case.key: image for batch, images in batches for (case, _), image in zip(batch, images, strict=True)}

    def _reference(self, subject: Subject) -> "Image | None":
        reference = self._evaluation.reference(self.variant, subject)
        return None if reference is None else shown_reference(reference, self._backbone.image_size)

    def _cache(self, subject: Subject, reference: "Image | None") -> "FeatureCache | None":
        from dreamcache.cache import cache_reference

        whose = self._evaluation.shown(self.variant, subject)
        if self.variant == "ip-adapter" or whose is None or reference is None or self._adapters is None:
            return None
        return cache_reference(self._backbone, reference, **self._adapters.cache_settings(whose.class_word))


def _write_shard(evaluation: Evaluation, subject: Subject, plan: ShardPlan, sampler: _Sampler) -> None:
    """Write one subject's images of one variant: PNG, with the case and the reference's key in KEY.json.

    An image of one colour, which is what NaN turns into, is a reject.
    """
    cases, reference = evaluation.cases(subject), evaluation.reference(sampler.variant, subject)
    with plan.writing(sampler.execution, records_in=len(cases)) as out:
        for case, image in zip(cases, sampler.images(subject), strict=True):
            record = {
                "key": case.key,
                "subject": case.subject,
                "prompt_index": case.prompt_index,
                "position": case.position,
                "prompt": case.prompt,
                "seed": case.seed,
                "reference": None if reference is None else reference.key,
                "reference_masked": None if reference is None else reference.mask is not None,
            }
            if len(image.getcolors(1) or ()) == 1:  # None: more than one colour
                out.reject(record, "image of one colour")
                continue
            content = io.BytesIO()
            image.save(content, "PNG")
            out.add(record, {"png": content.getvalue()})
