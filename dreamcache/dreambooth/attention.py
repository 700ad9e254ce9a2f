"""Where an evaluation's images look in their references: one image each of a few subjects (paper Section 4.4)."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from PIL import Image

from dreamcache.dreambooth.cases import Subject
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.references import shown_reference

if TYPE_CHECKING:
    from dreamcache.adapters import AdapterSet
    from dreamcache.attention_maps import Region
    from dreamcache.backbone import Backbone


def attend_cases(
    evaluation: Evaluation,
    backbone: "Backbone",
    adapters: "AdapterSet",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Make the attention maps that are not up to date; `report` gets (pictures done, pictures) after each.

    ValueError where the masks of the adapters' images are not made yet, or a reference's mask does not fit it.
    """
    plans = evaluation.attention_plans()
    for done, (subject, plan) in enumerate(plans, start=1):
        if plan.state() != "done":
            attend_shard(evaluation, subject, backbone, adapters)
        report(done, len(plans))


def attend_shard(evaluation: Evaluation, subject: Subject, backbone: "Backbone", adapters: "AdapterSet") -> None:
    """Sample a subject's first case again, and write where its subject looks in the reference, layer by layer.

    KEY.generated.png is the image with the region marked, KEY.LAYER.png the reference under a layer's heat map;
    KEY.json has the shares of attention and of area that the reference's subject has at each layer. The region is the
    mask that the mask stage found in the image, else `box`, the middle of it. An image of one colour is a reject.
    """
    from dreamcache.attention_maps import heated, marked, sample_with_attention
    from dreamcache.cache import cache_reference
    from dreamcache.dreambooth.embedders import open_image
    from dreamcache.reference import reference_mask

    backbone.require_dtype(evaluation.config.dtype, "evaluation")
    size, case = backbone.image_size, evaluation.cases(subject)[0]
    reference = evaluation.reference("adapters", subject)
    assert reference is not None
    with evaluation.attention_plan(subject).writing({"device": str(backbone.device)}, records_in=1) as out:
        shown = shown_reference(reference, size)
        mask = None if reference.mask is None else Image.open(io.BytesIO(reference.mask))
        cache = cache_reference(backbone, shown, **adapters.cache_settings(subject.class_word))
        image, maps = sample_with_attention(
            backbone, adapters, cache, case.prompt, evaluation.config.sampling, seed=case.seed
        )
        png = evaluation.region(subject)
        found = None if png is None else Image.open(io.BytesIO(png)).convert("L")
        region: Region = middle(image.width) if found is None or found.getbbox() is None else found
        record: dict[str, Any] = {
            "key": case.key, "subject": subject.name, "prompt": case.prompt, "seed": case.seed,
            "reference": reference.key, "reference_masked": mask is not None,
            "box": None if region is found else region,
        }  # fmt: skip
        if len(image.getcolors(1) or ()) == 1:
            out.reject(record, "image of one colour")
            return
        shares = maps.subject_shares(region, [reference_mask(open_image(reference.path), mask, size)])
        seen = maps.seen_from(region)
        pictures = {"generated": marked(image, region)} | {layer: heated([shown], seen[layer]) for layer in seen}
        layers = [
            {"layer": layer, "cells": list(seen[layer].shape), "attention": attention, "area": area}
            for layer, (attention, area) in shares.items()
        ]
        parts = {}
        for name, picture in pictures.items():
            content = io.BytesIO()
            picture.save(content, "PNG")
            parts[f"{name}.png"] = content.getvalue()
        out.add(record | {"layers": layers}, parts)


def middle(side: int) -> tuple[int, int, int, int]:
    """The box in the middle of an image, half its side, from where one looks if no subject is known."""
    return (side // 4, side // 4, side * 3 // 4, side * 3 // 4)
