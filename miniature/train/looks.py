"""What an instance was drawn from, as targets to learn from: its looks by name, by measure and as a drawing."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from miniature.subjects import ACCESSORIES, PATTERNS, Instance, draw_subject

DRAWING = 32  # px, the side of an instance's drawing
MEASURES = 12


@dataclass(frozen=True)
class Looks:
    """What instances were drawn from.

    patterns, accessories: (B,) indices. measures: (B, 12) of deviation about 1: the palette's nine values, the
    pattern's scale, and cosines of twice and four times its angle (those that a mirror image keeps). drawings:
    (B, 4, 32, 32) in [0, 1], each instance upright on a transparent ground, RGB times alpha.
    """

    patterns: Tensor
    accessories: Tensor
    measures: Tensor
    drawings: Tensor

    @classmethod
    def of(cls, instances: list[Instance], device: torch.device) -> "Looks":
        rows = []
        for one in instances:
            angle = math.radians(one.pattern_angle)
            palette = [3.5 * (value / 255 - 0.5) for colour in one.palette for value in colour]
            rows.append([*palette, 20 * (one.pattern_scale - 0.255), math.cos(2 * angle), math.cos(4 * angle)])
        drawings = torch.from_numpy(np.stack([drawing_of(one) for one in instances]))
        return cls(
            torch.tensor([PATTERNS.index(one.pattern) for one in instances], device=device),
            torch.tensor([ACCESSORIES.index(one.accessory) for one in instances], device=device),
            torch.tensor(rows, device=device),
            drawings.permute(0, 3, 1, 2).to(device) / 255,
        )


@cache
def drawing_of(instance: Instance) -> np.ndarray:
    """An instance's drawing as (32, 32, 4) uint8, kept: it takes milliseconds."""
    return np.asarray(draw_subject(instance, DRAWING).convert("RGBa"))


def drawing_error(drawn: Tensor, drawings: Tensor) -> Tensor:
    """Mean squared error of drawings (B, 4, 32, 32), each against its target or the target's mirror image."""
    errors = [(drawn - target).square().mean((1, 2, 3)) for target in (drawings, drawings.flip(-1))]
    return torch.minimum(*errors).mean()


def spots(masks: Tensor, window: tuple[slice, slice], patch: int) -> Tensor:
    """Where each patch of a window (rows, columns) lies on its subject, (B, patches, 3), by the masks (B, H, W).

    The share of the patch that the subject covers, and the place of the patch's centre in the box around the whole
    subject, each axis from -1 to 1.
    """
    covered = F.avg_pool2d(masks[(..., *window)][:, None], patch)[:, 0]
    down, across = (
        _along(masks.amax(axis) > 0.5, torch.arange(part.start + patch / 2, part.stop, patch))
        for axis, part in zip((2, 1), window, strict=True)
    )
    return torch.stack(
        [covered, across[:, None, :].expand_as(covered), down[:, :, None].expand_as(covered)], -1
    ).flatten(1, 2)


def _along(covered: Tensor, centres: Tensor) -> Tensor:
    """Places of pixel positions (N,) on what is covered of lines (B, L): -1 at its first pixel, 1 at its last."""
    first = covered.float().argmax(1, keepdim=True)
    last = covered.shape[1] - covered.flip(1).float().argmax(1, keepdim=True)
    return 2 * (centres - first) / (last - first).clamp(min=1) - 1
