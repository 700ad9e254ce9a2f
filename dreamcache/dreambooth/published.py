"""What is published of the benchmark: of its real images, by which an evaluation is calibrated, and of methods."""

import json
from pathlib import Path
from typing import NamedTuple

from dreamcache.dreambooth.models import local_model

# Real images against real images of the same subject, DINO ViT-S/16 and CLIP ViT-B/32.
REAL_AGAINST_REAL = {"dino": 0.774, "clip_i": 0.885}
_DINO = {"model_type": "vit", "hidden_size": 384, "num_hidden_layers": 12, "patch_size": 16, "image_size": 224}
_CLIP = {"model_type": "clip", "projection_dim": 512}
_CLIP_VISION = {"hidden_size": 768, "patch_size": 32}


class PublishedRow(NamedTuple):
    """A row of the paper's Table 2; `references` are the images of a subject that the method is shown."""

    method: str
    backbone: str
    references: str
    dino: float
    clip_i: float
    clip_t: float


# Paper Table 2: methods that are finetuned for each subject, then those that are not.
TABLE_2 = tuple(
    PublishedRow(*row)
    for row in (
        ("DreamBooth", "Imagen", "3-5", 0.696, 0.812, 0.306),
        ("DreamBooth", "SD 1.5", "3-5", 0.668, 0.803, 0.305),
        ("Textual Inversion", "SD 1.5", "3-5", 0.569, 0.780, 0.255),
        ("Custom Diffusion", "SD 1.5", "3-5", 0.643, 0.790, 0.305),
        ("BLIP-Diffusion, finetuned", "SD 1.5", "3-5", 0.670, 0.805, 0.302),
        ("ELITE", "SD 1.5", "1", 0.621, 0.771, 0.293),
        ("BLIP-Diffusion", "SD 1.5", "1", 0.594, 0.779, 0.300),
        ("IP-Adapter", "SD 1.5", "1", 0.667, 0.813, 0.289),
        ("Kosmos-G", "SD 1.5", "1", 0.694, 0.847, 0.287),
        ("JeDi", "SD 1.5", "1", 0.619, 0.782, 0.304),
        ("DreamCache", "SD 1.5", "1", 0.713, 0.810, 0.298),
        ("Re-Imagen", "Imagen", "1-3", 0.600, 0.740, 0.270),
        ("SuTI", "Imagen", "1-3", 0.741, 0.819, 0.304),
        ("Subject-Diffusion", "SD 2.1", "1", 0.771, 0.779, 0.293),
        ("BootPIG", "SD 2.1", "3", 0.674, 0.797, 0.311),
        ("ToffeeNet", "SD 2.1", "1", 0.728, 0.817, 0.306),
        ("CAFE", "SD 2.1", "1", 0.715, 0.827, 0.294),
        ("DreamCache", "SD 2.1", "1", 0.767, 0.816, 0.301),
    )
)


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
