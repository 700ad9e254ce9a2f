"""Classifier-free guidance with a reference and a text: joint and combined (paper S4)."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dreamcache.configs import SamplingConfig


@dataclass(frozen=True)
class Branch:
    """One prediction that guidance needs, e(c_I, c_T): with or without the reference, with or without the text."""

    reference: bool
    text: bool


def guidance_branches(config: SamplingConfig, personalized: bool) -> Sequence[Branch]:
    """The branches of one step; those with the reference come first, e(0, 0), the plain U-Net, last.

    Without a reference both ways of guidance are the usual one: e(0, T) and e(0, 0).
    """
    if not personalized:
        return [Branch(reference=False, text=True), Branch(reference=False, text=False)]
    if config.guidance == "joint":
        return [Branch(reference=True, text=True), Branch(reference=False, text=False)]
    return [
        Branch(reference=True, text=True),
        Branch(reference=True, text=False),
        Branch(reference=False, text=False),
    ]


def guided_prediction(predictions: Sequence[Tensor], config: SamplingConfig) -> Tensor:
    """One prediction (B, C, h, w) from those of `guidance_branches`, in its order (paper S4).

    Joint: e(0,0) + s [e(I,T) - e(0,0)]; combined: e(0,0) + s_I [e(I,0) - e(0,0)] + s_T [e(I,T) - e(I,0)].
    """
    if len(predictions) == 2:
        full, plain = predictions
        return plain + config.guidance_scale * (full - plain)
    full, reference_only, plain = predictions
    by_reference = config.image_guidance_scale * (reference_only - plain)
    return plain + by_reference + config.guidance_scale * (full - reference_only)
