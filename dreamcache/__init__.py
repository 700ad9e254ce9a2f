"""DreamCache: personalized images from one reference, cached once, and light adapters on a frozen Stable Diffusion.

The names below load on first use, so that `import dreamcache` and its settings need no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamcache.adapters import AdapterSet
    from dreamcache.backbone import Backbone, load_backbone
    from dreamcache.cache import FeatureCache, cache_reference
    from dreamcache.conditioning import conditioned
    from dreamcache.configs import AdapterConfig, SamplingConfig, TrainingConfig
    from dreamcache.pipeline import DreamCachePipeline
    from dreamcache.reference import reference_image
    from dreamcache.sampling import sample_images
    from dreamcache.training import train_adapters

_MODULES = {
    "AdapterConfig": "configs",
    "AdapterSet": "adapters",
    "Backbone": "backbone",
    "DreamCachePipeline": "pipeline",
    "FeatureCache": "cache",
    "SamplingConfig": "configs",
    "TrainingConfig": "configs",
    "cache_reference": "cache",
    "conditioned": "conditioning",
    "load_backbone": "backbone",
    "reference_image": "reference",
    "sample_images": "sampling",
    "train_adapters": "training",
}

__all__ = [
    "AdapterConfig",
    "AdapterSet",
    "Backbone",
    "DreamCachePipeline",
    "FeatureCache",
    "SamplingConfig",
    "TrainingConfig",
    "cache_reference",
    "conditioned",
    "load_backbone",
    "reference_image",
    "sample_images",
    "train_adapters",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'dreamcache' has no attribute {name!r}")
    return getattr(importlib.import_module(f"dreamcache.{_MODULES[name]}"), name)
