"""A profile's Stable Diffusion with adapters, loaded where images are to be sampled."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from flows.profiles import Profile

if TYPE_CHECKING:
    from dreamcache.pipeline import DreamCachePipeline


def load_pipeline(profile: Profile, adapters: str | Path) -> DreamCachePipeline:
    """The profile's backbone with adapters, in the evaluation's dtype, on the GPU if there is one.

    `adapters` are a folder, a name on the Hub, or the authors' released `cross_attention-STEP.pt`.
    """
    import torch

    from dreamcache import DreamCachePipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, profile.evaluation.dtype)
    return DreamCachePipeline.from_pretrained(profile.backbone, adapters, device=device, torch_dtype=dtype)
