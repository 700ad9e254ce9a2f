"""The miniature profile with very small models and sizes in its place, as settings: a whole run in seconds."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from tiny_datagen import tiny_models
from tiny_embedders import save_tiny_clip, save_tiny_dino, write_tiny_benchmark


@functools.cache
def tiny_settings() -> dict[str, Any]:
    """Dotted settings for `load_profile("miniature", ...)`; the models are made once a test process."""
    from dreamcache import AdapterSet, load_backbone

    models = tiny_models()
    more = Path(tempfile.mkdtemp(prefix="tiny-profile-"))
    atexit.register(shutil.rmtree, more, ignore_errors=True)
    save_tiny_dino(more / "dino")
    save_tiny_clip(more / "clip")
    write_tiny_benchmark(more / "benchmark")
    backbone = load_backbone(models / "stable-diffusion")
    AdapterSet.for_unet(backbone.unet, backbone_identity=backbone.identity).save_pretrained(more / "adapters")
    return {
        "captions_per_shard": 16,
        "shards": 2,
        "captions.model": str(models / "llama"),
        "captions.taxonomy": str(models / "taxonomy.json"),
        "captions.max_new_tokens": 40,
        "dedup.near_duplicate": 0.9,
        "dedup.max_class_share": 1.0,
        "dedup.max_class_and_place_share": 0.5,
        "images.model": str(models / "stable-diffusion"),
        "images.steps": 2,
        "images.min_brightness": 0,
        "images.min_contrast": 0,
        "masks.box_model": str(models / "owlvit"),
        "masks.mask_model": str(models / "sam"),
        "masks.min_stored_score": 0,
        "gates.min_box_score": 0,
        "gates.min_predicted_iou": 0,
        "gates.min_area": 0,
        "gates.max_area": 1,
        "gates.max_border": 4,
        "backbone": str(models / "stable-diffusion"),
        "training.steps": 4,
        "training.batch_size": 4,
        "training.validation_every": 2,
        "training.validation_triplets": 4,
        "training.checkpoint_every": 2,
        "training.held_out": 0.3,
        "evaluation.prompts": 2,
        "evaluation.sampling.steps": 2,
        "evaluation.min_box_score": 0,
        "sweep.image_scales": [0.5, 2.0],
        "sweep.text_scales": [3.0],
        "sweep.subjects": 2,
        "sweep.prompts": 1,
        "benchmark": str(more / "benchmark"),
        "dino": str(more / "dino"),
        "clip": str(more / "clip"),
        "compare_with": str(more / "adapters"),
    }


def save_tiny_adapters(folder: Path) -> Path:
    """Adapters that change what is sampled, which those of `tiny_settings` do not: training starts from such."""
    import torch

    from dreamcache import AdapterSet

    made = AdapterSet.from_pretrained(tiny_settings()["compare_with"])
    torch.manual_seed(0)
    for parameter in made.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    return folder


def as_arguments(settings: dict[str, Any]) -> list[str]:
    """Settings as the command line takes them."""
    return [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
