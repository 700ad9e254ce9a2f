"""Sampling an evaluation's images: one shard a subject and variant, each resumable on its own."""

import io
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamcache.dreambooth.cases import Case, Subject
from dreamcache.dreambooth.config import Variant
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.references import shown_reference
from shards.memory import in_batches

if TYPE_CHECKING:
    from PIL.Image import Image

    from dreamcache.adapters import AdapterSet
    from dreamcache.backbone import Backbone

Report = Callable[[dict[str, Any]], None]


def generate_cases(
    evaluation: Evaluation,
    backbone: "Backbone",
    adapters: "AdapterSet | None",
    batch_size: int = 8,
    report: Report | None = None,
    ip_adapter: str | Path | None = None,
) -> int:
    """Sample the images of all shards that are not up to date; returns the number of shards made.

    Args:
        evaluation: what to sample, and where to.
        backbone, adapters: the models whose identities the evaluation names; adapters may be None where no variant uses
            them.
        batch_size: images sampled at a time, fewer where a GPU's memory does not hold them; it changes them by rounding
            only.
        report: called after each shard with stage, variant, subject, done, total and made (False: it was up to date).
        ip_adapter: where IP-Adapter lies, for the variant of that name.

    Raises:
        ValueError: as `generate_shard`.
    """
    made = 0
    plans = evaluation.image_plans()
    with ExitStack() as stack:
        pipeline = None
        for done, (variant, subject, plan) in enumerate(plans, start=1):
            if stale := plan.state() != "done":
                if variant == "ip-adapter" and pipeline is None:
                    pipeline = stack.enter_context(_ip_adapted(evaluation, backbone, ip_adapter))
                elif variant != "ip-adapter" and pipeline is not None:
                    stack.close()  # the others see the U-Net without it
                    pipeline = None
                generate_shard(evaluation, variant, subject, backbone, adapters, batch_size, pipeline)
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


def generate_shard(
    evaluation: Evaluation,
    variant: Variant,
    subject: Subject,
    backbone: "Backbone",
    adapters: "AdapterSet | None",
    batch_size: int = 8,
    ip_adapter: Any = None,
) -> None:
    """Sample one subject's images for one variant: PNG, with the case and the reference's key in KEY.json.

    An image of one colour, which is what NaN turns into, is a reject. `ip_adapter` is a pipeline for that variant.

    Raises:
        ValueError: when the variant needs adapters and there are none, the reference's mask does not fit it, or the
            backbone is not in the evaluation's dtype.
    """
    from dreamcache.cache import cache_reference
    from dreamcache.sampling import sample_images

    backbone.require_dtype(evaluation.config.dtype, "evaluation")
    reference = evaluation.reference(variant, subject)
    config, cases = evaluation.config.sampling, evaluation.cases(subject)
    shown = None if reference is None else shown_reference(reference, backbone.image_size)
    if variant not in ("no-adapters", "ip-adapter") and adapters is None:
        raise ValueError(f"the variant {variant} needs adapters; give them, or take it out of the variants")
    plan = evaluation.image_plan(variant, subject)
    execution: dict[str, Any] = {"batch_size": batch_size, "device": str(backbone.device)}
    with plan.writing(execution, records_in=len(cases)) as out:
        used, cache, whose = None, None, evaluation.shown(variant, subject)
        if variant != "ip-adapter" and whose is not None and shown is not None and adapters is not None:
            used, cache = adapters, cache_reference(backbone, shown, **adapters.cache_settings(whose.class_word))

        def sample(batch: Sequence[Case]) -> "list[Image]":
            prompts, seeds = [case.prompt for case in batch], [case.seed for case in batch]
            if variant == "ip-adapter":
                from dreamcache.dreambooth.ip_adapter import sample_ip_adapter

                assert shown is not None
                return sample_ip_adapter(ip_adapter, shown, prompts, config, seeds)
            return sample_images(backbone, used, cache, prompts, config, seeds=seeds, batch_size=len(batch))

        batches = in_batches(cases, execution, sample)
        for case, image in (pair for batch, images in batches for pair in zip(batch, images, strict=True)):
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
