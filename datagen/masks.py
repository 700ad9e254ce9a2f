"""Subject masks: a box from the subject's noun, a mask from the box (paper 3.3: Grounding DINO and SAM).

Boxes, scores and measures are stored for every image, good or bad: the gates decide later, without a model.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from datagen.config import Dtype, Execution, StageConfig
from datagen.identity import model_identity
from shards.files import read_tar_records
from shards.markers import Marker
from shards.memory import in_batches
from shards.stage import ShardPlan, StageSpec
from shards.triplets import IMAGE, MASK, RECORD

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

MASKS_VERSION = 3
PACKAGES = {"groundingdino-py": "groundingdino", "segment-anything": "segment_anything"}
Box = tuple[float, float, float, float]


class MasksConfig(StageConfig):
    """How subjects are found and cut out. `query` is what the detector reads: lower case and "." for Grounding DINO.

    The engines are transformers, or the packages of the models' authors, which read the authors' checkpoints.
    `text_model` is the folder or Hub name of the BERT whose tokenizer and sizes groundingdino-py needs besides.
    """

    LOCATIONS: ClassVar[tuple[str, ...]] = ("box_model", "mask_model", "text_model")
    box_engine: Literal["transformers", "groundingdino-py"] = "transformers"
    mask_engine: Literal["transformers", "segment-anything"] = "transformers"
    box_model: str
    mask_model: str
    text_model: str | None = None
    query: str = Field(default="{noun}.", pattern=r"\{noun\}")
    min_stored_score: float = Field(default=0.05, ge=0, le=1, description="boxes below it are not kept at all")
    max_boxes: int = Field(default=5, ge=1, description="boxes kept of an image, best first")
    multimask: bool = Field(default=True, description="let the mask model propose three masks and choose among them")
    min_region: float = Field(default=0.001, ge=0, le=1, description="holes and specks under this share are cleaned")
    min_part: float = Field(default=0.0, ge=0, le=1, description="parts under this share of the largest are dropped")
    soft_edge: float = Field(default=1 / 256, ge=0, le=0.1, description="width of a mask's edge, share of the side")
    dtype: Dtype = Field(default="float32", description="of the mask model; a detector's coordinates stay float32")
    execution: Execution = Execution()

    @field_validator("query")
    @classmethod
    def _has_no_other_field(cls, query: str) -> str:
        if {"{", "}"} & set(query.replace("{noun}", "")):
            raise ValueError("in query, {noun} alone may stand in braces")
        return query

    @model_validator(mode="after")
    def _has_a_text_model(self) -> Self:
        if self.box_engine == "groundingdino-py" and self.text_model is None:
            raise ValueError("groundingdino-py needs text_model, such as google-bert/bert-base-uncased")
        return self

    def locations(self) -> dict[str, str]:
        """Role -> folder or Hub name of the models that the engines read."""
        found = super().locations()
        return found if self.box_engine == "groundingdino-py" else {k: v for k, v in found.items() if k != "text_model"}


@dataclass(frozen=True)
class ScoredBox:
    """A box (left, top, right, bottom) in pixels and the detector's score in [0, 1]."""

    box: Box
    score: float


@dataclass(frozen=True)
class ProposedMasks:
    """A mask model's proposals for a box: masks (N, H, W) bool, and its own estimate of each one's IoU."""

    masks: np.ndarray
    predicted_iou: list[float]


class BoxFinder(Protocol):
    """What the stage needs of a detector: for each image the boxes of the noun, best first."""

    def find(self, images: Sequence[Image], nouns: Sequence[str]) -> list[list[ScoredBox]]:
        """Boxes in the order of the images (RGB, all of one size)."""


class MaskCutter(Protocol):
    """What the stage needs of a segmenter: for each image and box its proposed masks."""

    def cut(self, images: Sequence[Image], boxes: Sequence[Box]) -> list[ProposedMasks]:
        """Proposals in the order of the images (RGB), masks of the images' sizes."""


def mask_stage(config: MasksConfig) -> StageSpec:
    """The mask stage by these settings, of whichever images; raises FileNotFoundError for a missing model."""
    models = {role: model_identity(place, f"masks.{role}") for role, place in config.locations().items()}
    return StageSpec("masks", MASKS_VERSION, config.content(), models, ".tar")


def check_packages(config: MasksConfig) -> None:
    """Raise ModuleNotFoundError if the package of an engine is not installed; loads nothing."""
    for kind, engine in (("box", config.box_engine), ("mask", config.mask_engine)):
        if engine in PACKAGES and importlib.util.find_spec(PACKAGES[engine]) is None:
            advice = (
                f"pip install 'dreamcache-pipeline[gpu]', or set masks.{kind}_engine and masks.{kind}_model to others"
            )
            raise ModuleNotFoundError(f"masks.{kind}_engine: the package {engine} is not installed: {advice}")


def load_engines(config: MasksConfig) -> tuple[BoxFinder, MaskCutter]:
    """The detector and the segmenter that the settings name.

    Raises FileNotFoundError for missing weights and ModuleNotFoundError for a missing package, with what to do.
    """
    from datagen import masks_original, masks_transformers

    check_packages(config)
    if config.box_engine == "transformers":
        finder: BoxFinder = masks_transformers.TransformersBoxFinder(config)
    else:
        finder = masks_original.OriginalBoxFinder(config)
    if config.mask_engine == "transformers":
        return finder, masks_transformers.TransformersMaskCutter(config)
    return finder, masks_original.OriginalMaskCutter(config)


def best_boxes(boxes: Sequence[ScoredBox], image: Image, config: MasksConfig) -> list[ScoredBox]:
    """A detector's boxes clipped to the image, best first; those under a pixel or not finite, and the many, go."""
    found = []
    for one in boxes:
        left, right = (min(max(x, 0.0), float(image.width)) for x in one.box[::2])
        top, bottom = (min(max(y, 0.0), float(image.height)) for y in one.box[1::2])
        if one.score >= config.min_stored_score and right - left >= 1 and bottom - top >= 1:
            found.append(ScoredBox((left, top, right, bottom), one.score))
    return sorted(found, key=lambda one: (-one.score, one.box))[: config.max_boxes]


def run(
    plan: ShardPlan,
    config: MasksConfig,
    finder: BoxFinder,
    cutter: MaskCutter,
    execution: dict[str, Any],
    report: Callable[[int, int], None],
) -> Marker:
    """Write a shard's masks as KEY.mask.png beside boxes, scores and measures in KEY.json.

    A record for which no box was found has none of them, and `box` null; an image that cannot be decoded is rejected.
    `execution` and `report` are as in `in_batches`.
    """
    records = list(read_tar_records(plan.inputs[0]))

    def look(batch: Sequence[tuple[str, dict[str, bytes]]]) -> dict[str, tuple[list[ScoredBox], ProposedMasks | None]]:
        images = {key: image for key, parts in batch if (image := decoded(parts.get(IMAGE, b""))) is not None}
        nouns = {key: json.loads(parts[RECORD])["subject"].lower() for key, parts in batch if key in images}
        boxes: dict[str, list[ScoredBox]] = {}
        # Beside a larger image one would be padded, and Grounding DINO takes padding for places of subjects.
        for size in dict.fromkeys(image.size for image in images.values()):
            same = [key for key in images if images[key].size == size]
            found = finder.find([images[key] for key in same], [nouns[key] for key in same])
            boxes |= zip(same, found, strict=True)
        seen = [key for key in images if boxes[key]]
        cut = cutter.cut([images[key] for key in seen], [boxes[key][0].box for key in seen]) if seen else []
        proposed = dict(zip(seen, cut, strict=True))
        return {key: (boxes[key], proposed.get(key)) for key in images}

    with plan.writing(execution) as out:
        for batch, looked in in_batches(records, execution, look, report):
            for key, _ in batch:
                if key not in looked:
                    out.reject({"key": key}, "unreadable image")
                    continue
                record: dict[str, Any] = {"key": key, "box": None, "models": dict(plan.spec.models)}
                boxes, proposed = looked[key]
                if proposed is None:
                    out.add(record)
                    continue
                mask, measures = choose_mask(proposed, boxes[0].box, config)
                candidates = [{"box": [round(x, 1) for x in one.box], "score": round(one.score, 4)} for one in boxes]
                record |= {**candidates[0], "boxes": candidates, **measures}
                out.add(record, {MASK: encode_mask(mask, config.soft_edge)})
    return out.marker


def decoded(jpg: bytes) -> Image | None:
    """An image as RGB, or None if the bytes are none."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(jpg)).convert("RGB")
    except (UnidentifiedImageError, OSError):
        return None


def choose_mask(proposed: ProposedMasks, box: Box, config: MasksConfig) -> tuple[np.ndarray, dict[str, Any]]:
    """The proposal (H, W) bool with the best product of predicted IoU and agreement with the box, cleaned; measures.

    Measures: `predicted_iou`; `box_agreement`, the IoU of the mask's bounding box with the box; `area`, a share of the
    image; `border`, the mask's pixels on the image's edges as a share of the side; all of the chosen mask. The first
    two of every proposal stand in `proposals`. A predicted IoU that is not finite counts as 0.
    """
    agreements = [box_iou(bounding_box(mask), box) for mask in proposed.masks]
    ious = [iou if math.isfinite(iou) else 0.0 for iou in proposed.predicted_iou]
    merits = [iou * agreement for iou, agreement in zip(ious, agreements, strict=True)]
    best = max(range(len(merits)), key=merits.__getitem__)
    mask = cleaned(proposed.masks[best], config.min_region, config.min_part)
    edge = int(mask[[0, -1], :].sum() + mask[1:-1, [0, -1]].sum())
    proposals = [
        {"predicted_iou": round(iou, 4), "box_agreement": round(agreement, 4)}
        for iou, agreement in zip(ious, agreements, strict=True)
    ]
    measures = {"area": round(float(mask.mean()), 4), "border": round(edge / min(mask.shape), 4)}
    return mask, {**proposals[best], **measures, "proposals": proposals}


def bounding_box(mask: np.ndarray) -> Box:
    """The box (left, top, right, bottom) around a mask (H, W) in pixels; all zero for an empty mask."""
    import numpy as np

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def box_iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), in [0, 1]."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared) if shared else 0.0


def cleaned(mask: np.ndarray, min_region: float, min_part: float = 0.0) -> np.ndarray:
    """A mask (H, W) bool without specks and holes whose area is under a share of the image; its largest part stays.

    Parts of the mask that are under `min_part` of the largest one go too.
    """
    import numpy as np
    from scipy import ndimage

    # Specks of the subject first, then holes, which are specks of the background.
    for wanted, share_of_largest in ((True, min_part), (False, 0.0)):
        parts, count = ndimage.label(mask == wanted)
        if count > 1:
            areas = np.bincount(parts.ravel())[1:]
            small = areas < max(min_region * mask.size, share_of_largest * areas.max())
            small[areas.argmax()] = False
            mask = np.where(np.isin(parts, 1 + small.nonzero()[0]), not wanted, mask)
    return mask


def encode_mask(mask: np.ndarray, soft_edge: float) -> bytes:
    """A mask (H, W) bool as PNG bytes: one channel, 0 to 255, at least 128 just where the mask is.

    The edge rises over `soft_edge` of the image's side, half of it within the mask; under two pixels it stays hard.
    """
    import numpy as np
    from PIL import Image
    from scipy import ndimage

    width = soft_edge * min(mask.shape)
    alpha = mask.astype(np.float64)
    if width >= 2 and 0 < alpha.mean() < 1:
        # Distances are to the other side's nearest pixel: the edge itself lies half a pixel nearer.
        inside, outside = ndimage.distance_transform_edt(mask), ndimage.distance_transform_edt(~mask)
        alpha = (0.5 + np.where(mask, inside - 0.5, 0.5 - outside) / width).clip(0, 1)
    buffer = io.BytesIO()
    Image.fromarray((alpha * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
