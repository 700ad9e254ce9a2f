"""What is published of the benchmark's real images, by which an evaluation with the true weights is calibrated."""

import json
from pathlib import Path

from dreamcache.dreambooth.models import local_model

# Real images against real images of the same subject, DINO ViT-S/16 and CLIP ViT-B/32.
REAL_AGAINST_REAL = {"dino": 0.774, "clip_i": 0.885}
_DINO = {"model_type": "vit", "hidden_size": 384, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224}
_CLIP = {"model_type": "clip", "projection_dim": 512}
_CLIP_VISION = {"hidden_size": 768, "patch_size": 32}


def published_real_scores(benchmark: str, dino: str | Path, clip: str | Path) -> dict[str, float]:
    """The published scores that belong to a benchmark's name and two models' architectures; none for others.

    Whether the weights are the true ones is what comparing with them tells.
    """
    if benchmark != "dreambooth":
        return {}
    dino_config, clip_config = (json.loads((local_model(place) / "config.json").read_bytes()) for place in (dino, clip))
    vision = clip_config.get("vision_config", {})
    fits = {
        "dino": all(dino_config.get(name) == value for name, value in _DINO.items()),
        # What a configuration leaves out is the library's default, which for CLIP is ViT-B/32's.
        "clip_i": all(clip_config.get(name, value) == value for name, value in _CLIP.items())
        and all(vision.get(name, value) == value for name, value in _CLIP_VISION.items()),
    }
    return {metric: value for metric, value in REAL_AGAINST_REAL.items() if fits[metric]}
