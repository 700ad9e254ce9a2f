"""The mask of one photo's subject, by the engines of the mask stage."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from datagen.gates import GatesConfig, gate_fault
from datagen.masks import MasksConfig, choose_mask, encode_mask, load_engines

if TYPE_CHECKING:
    from PIL.Image import Image


def subject_mask(image: Image, noun: str, config: MasksConfig, gates: GatesConfig) -> tuple[Image, str]:
    """The mask (L, the image's size, 255 on the subject) of what a noun names in an image (RGB), and how sure it is.

    What the gates refuse a triplet for is said, no more: a photo may touch its border. ValueError where no box of the
    noun reaches `min_box_score`, or nothing is left of its mask; otherwise as `load_engines`.
    """
    from PIL import Image

    finder, cutter = load_engines(config)
    ((*boxes,),) = finder.find([image], [noun.lower()])
    if not boxes or boxes[0].score < gates.min_box_score:
        best = f"the best box scores {boxes[0].score:.2f}" if boxes else "not one box"
        raise ValueError(f"no {noun} found: {best}, gates.min_box_score is {gates.min_box_score:g}")
    (proposed,) = cutter.cut([image], [boxes[0].box])
    mask, measures = choose_mask(proposed, boxes[0].box, config)
    if not mask.any():
        raise ValueError(f"a {noun} found with score {boxes[0].score:.2f}, but its mask is empty")
    found = [{"box": one.box, "score": one.score} for one in boxes]
    record: dict[str, Any] = {**found[0], "boxes": found, **measures}
    said = f"{noun} found with score {boxes[0].score:.2f}, mask {measures['area']:.0%} of the image"
    if (fault := gate_fault(record, gates)) is not None:
        said += f"; as a triplet it would be refused: {fault[0]} ({fault[1]:g})"
    return Image.open(io.BytesIO(encode_mask(mask, config.soft_edge))), said
