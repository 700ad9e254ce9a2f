"""Subject masks: a box from the subject's noun, a mask from the box (paper 3.3: Grounding DINO and SAM).

Boxes, scores and measures are stored for every image, good or bad: the gates decide later, without a model.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from datagen.config import Dtype, Execution, StageConfig, torch_device
from datagen.identity import pinned
from shards.files import read_tar_records
from shards.markers import Marker
from shards.stage import ShardPlan

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

MASKS_VERSION = 1
Box = tuple[float, float, float, float]


class MasksConfig(StageConfig):
    """How subjects are found and cut out. `query` is what the detector reads: lower case and "." for Grounding DINO."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("box_model", "mask_model")
    box_model: str
    mask_model: str
    query: str = Field(default="{noun}.", pattern=r"\{noun\}")
    text_threshold: float = Field(default=0.25, ge=0, le=1, description="of Grounding DINO's words for a box")
    min_stored_score: float = Field(default=0.05, ge=0, le=1, description="boxes below it are not kept at all")
    max_boxes: int = Field(default=5, ge=1, description="boxes kept of an image, best first")
    multimask: bool = Field(default=True, description="let the mask model propose three masks and choose among them")
    min_region: float = Field(default=0.001, ge=0, le=1, description="holes and specks under this share are cleaned")
    dtype: Dtype = "float32"
    execution: Execution = Execution()


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
        """Boxes in the order of the images (RGB)."""


class MaskCutter(Protocol):
    """What the stage needs of a segmenter: for each image and box its proposed masks."""

    def cut(self, images: Sequence[Image], boxes: Sequence[Box]) -> list[ProposedMasks]:
        """Proposals in the order of the images (RGB)."""


def run(
    plan: ShardPlan, config: MasksConfig, boxes: BoxFinder, masks: MaskCutter, report: Callable[[int, int], None]
) -> Marker:
    """Write a shard's masks as KEY.mask.png beside boxes, scores and measures in KEY.json.

    A record for which no box was found has none of them, and `box` null; an image that cannot be decoded is rejected.
    """
    from PIL import Image, UnidentifiedImageError

    records = list(read_tar_records(plan.inputs[0]))
    with plan.writing(config.execution.model_dump()) as out:
        for start in range(0, len(records), config.execution.batch_size):
            keys, nouns, images = [], [], []
            batch = records[start : start + config.execution.batch_size]
            for key, parts in batch:
                try:
                    image = Image.open(io.BytesIO(parts["jpg"])).convert("RGB")
                except (UnidentifiedImageError, OSError, KeyError):
                    out.reject({"key": key}, "unreadable image")
                    continue
                keys.append(key)
                nouns.append(json.loads(parts["json"])["subject"].lower())
                images.append(image)
            found = boxes.find(images, nouns) if images else []
            seen = [number for number, candidates in enumerate(found) if candidates]
            cut = masks.cut([images[n] for n in seen], [found[n][0].box for n in seen]) if seen else []
            proposals = dict(zip(seen, cut, strict=True))
            for number, key in enumerate(keys):
                record: dict[str, Any] = {"key": key, "box": None, "models": dict(plan.spec.models)}
                if number not in proposals:
                    out.add(record)
                    continue
                mask, measures = choose_mask(proposals[number], found[number][0].box, config.min_region)
                candidates = [{"box": [round(x, 1) for x in c.box], "score": round(c.score, 4)} for c in found[number]]
                record |= {**candidates[0], "boxes": candidates, **measures}
                out.add(record, {"mask.png": encode_mask(mask)})
            report(start + len(batch), len(records))
    assert out.marker is not None
    return out.marker


def choose_mask(proposed: ProposedMasks, box: Box, min_region: float) -> tuple[np.ndarray, dict[str, Any]]:
    """The proposal (H, W) bool with the best product of predicted IoU and agreement with the box, cleaned; measures.

    Measures: `predicted_iou`; `box_agreement`, the IoU of the mask's bounding box with the box; `area`, a share of the
    image; `border`, the mask's pixels on the image's edges as a share of the side; all of the chosen mask.
    """
    agreements = [box_iou(bounding_box(mask), box) for mask in proposed.masks]
    merits = [iou * agreement for iou, agreement in zip(proposed.predicted_iou, agreements, strict=True)]
    best = max(range(len(merits)), key=merits.__getitem__)
    mask = cleaned(proposed.masks[best], min_region)
    edge = int(mask[[0, -1], :].sum() + mask[1:-1, [0, -1]].sum())
    measures = {
        "predicted_iou": proposed.predicted_iou[best],
        "box_agreement": agreements[best],
        "area": float(mask.mean()),
        "border": edge / min(mask.shape),
    }
    return mask, {name: round(value, 4) for name, value in measures.items()}


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


def cleaned(mask: np.ndarray, min_region: float) -> np.ndarray:
    """A mask (H, W) bool without specks and holes whose area is under a share of the image; its largest part stays."""
    import numpy as np
    from scipy import ndimage

    limit = min_region * mask.size
    for wanted in (True, False):  # specks of the subject first, then holes, which are specks of the background
        parts, count = ndimage.label(mask == wanted)
        if count > 1:
            areas = np.bincount(parts.ravel())[1:]
            small = areas < limit
            small[areas.argmax()] = False
            mask = np.where(np.isin(parts, 1 + small.nonzero()[0]), not wanted, mask)
    return mask


def encode_mask(mask: np.ndarray) -> bytes:
    """A mask (H, W) bool as PNG bytes: one channel, 0 and 255."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask.astype("uint8") * 255).save(buffer, "PNG")
    return buffer.getvalue()


class TransformersBoxFinder:
    """An open-vocabulary detector of transformers: Grounding DINO, OWL-ViT and their kin, by the folder's config."""

    def __init__(self, config: MasksConfig) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.config = config
        self.device = torch_device(config.execution)
        self.processor = AutoProcessor.from_pretrained(config.box_model, **pinned(config.box_model))
        model = AutoModelForZeroShotObjectDetection.from_pretrained(
            config.box_model, **pinned(config.box_model), use_safetensors=True, dtype=config.dtype
        )
        self.model = model.to(self.device).eval()
        # Grounding DINO reads one text an image and judges its words; the others score a list of queries an image.
        self.reads_sentences = "grounding-dino" in self.model.config.model_type

    def find(self, images: Sequence[Image], nouns: Sequence[str]) -> list[list[ScoredBox]]:
        """Boxes in the order of the images (RGB), clipped to the image, best first."""
        import torch

        queries: list[Any] = [self.config.query.format(noun=noun) for noun in nouns]
        if not self.reads_sentences:
            queries = [[query] for query in queries]
        inputs = self.processor(
            images=list(images),
            text=queries,
            return_tensors="pt",
            padding=True if self.reads_sentences else "max_length",
            truncation=True,
        )
        inputs = inputs.to(self.device, dtype=self.model.dtype)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        more = {"text_threshold": self.config.text_threshold} if self.reads_sentences else {}
        results = self.processor.post_process_grounded_object_detection(
            outputs,
            threshold=self.config.min_stored_score,
            target_sizes=[(image.height, image.width) for image in images],
            **more,
        )
        return [self._best(result, image) for result, image in zip(results, images, strict=True)]

    def _best(self, result: dict[str, Any], image: Image) -> list[ScoredBox]:
        found = []
        for score, corners in zip(result["scores"].tolist(), result["boxes"].tolist(), strict=True):
            left, right = (min(max(x, 0.0), float(image.width)) for x in corners[::2])
            top, bottom = (min(max(y, 0.0), float(image.height)) for y in corners[1::2])
            if right - left >= 1 and bottom - top >= 1:  # also drops boxes that are not finite
                found.append(ScoredBox((left, top, right, bottom), score))
        return sorted(found, key=lambda one: (-one.score, one.box))[: self.config.max_boxes]


class TransformersMaskCutter:
    """Segment Anything by transformers, prompted with a box."""

    def __init__(self, config: MasksConfig) -> None:
        from transformers import SamModel, SamProcessor

        self.config = config
        self.device = torch_device(config.execution)
        self.processor = SamProcessor.from_pretrained(config.mask_model, **pinned(config.mask_model))
        model = SamModel.from_pretrained(
            config.mask_model, **pinned(config.mask_model), use_safetensors=True, dtype=config.dtype
        )
        self.model = model.to(self.device).eval()

    def cut(self, images: Sequence[Image], boxes: Sequence[Box]) -> list[ProposedMasks]:
        """Proposals in the order of the images (RGB), masks of the images' sizes."""
        import torch

        inputs = self.processor(images=list(images), input_boxes=[[list(box)] for box in boxes], return_tensors="pt")
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        inputs = {name: value.to(self.device, dtype=self.model.dtype) for name, value in inputs.items()}
        with torch.inference_mode():
            outputs = self.model(**inputs, multimask_output=self.config.multimask)
        masks = self.processor.image_processor.post_process_masks(outputs.pred_masks.float().cpu(), *sizes)
        scores = outputs.iou_scores.float().cpu()
        return [
            ProposedMasks(mask[0].numpy(), score[0].clamp(0, 1).tolist())
            for mask, score in zip(masks, scores, strict=True)
        ]
