"""Boxes and masks by transformers: Grounding DINO, OWL-ViT and their kin, and Segment Anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from datagen.config import autocast, torch_device
from datagen.identity import loading
from datagen.masks import Box, MasksConfig, ProposedMasks, ScoredBox, best_boxes

if TYPE_CHECKING:
    from PIL.Image import Image


class TransformersBoxFinder:
    """An open-vocabulary detector of transformers: Grounding DINO, OWL-ViT and their kin, by the folder's config."""

    def __init__(self, config: MasksConfig) -> None:
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self.config = config
        self.device = torch_device(config.execution)
        with loading(config.box_model, "masks.box_model") as pinned:
            self.processor = AutoProcessor.from_pretrained(config.box_model, **pinned)
            model = AutoModelForZeroShotObjectDetection.from_pretrained(
                config.box_model, **pinned, use_safetensors=True, dtype="float32"
            )
        self.model = model.to(self.device).eval()
        # Grounding DINO reads one text an image and judges its words; the others score a list of queries an image.
        self.reads_sentences = "grounding-dino" in self.model.config.model_type

    def find(self, images: Sequence[Image], nouns: Sequence[str]) -> list[list[ScoredBox]]:
        """Boxes in the order of the images (RGB, all of one size), clipped to the image, best first."""
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
        inputs = inputs.to(self.device)
        with torch.inference_mode():
            outputs = self.model(**inputs)
        results = self.processor.post_process_grounded_object_detection(
            outputs,
            threshold=self.config.min_stored_score,
            target_sizes=[(image.height, image.width) for image in images],
        )
        return [
            best_boxes(list(map(ScoredBox, result["boxes"].tolist(), result["scores"].tolist())), image, self.config)
            for result, image in zip(results, images, strict=True)
        ]


class TransformersMaskCutter:
    """Segment Anything by transformers, prompted with a box."""

    def __init__(self, config: MasksConfig) -> None:
        from transformers import SamModel, SamProcessor

        self.config = config
        self.device = torch_device(config.execution)
        with loading(config.mask_model, "masks.mask_model") as pinned:
            self.processor = SamProcessor.from_pretrained(config.mask_model, **pinned)
            model = SamModel.from_pretrained(config.mask_model, **pinned, use_safetensors=True, dtype="float32")
        self.model = model.to(self.device).eval()

    def cut(self, images: Sequence[Image], boxes: Sequence[Box]) -> list[ProposedMasks]:
        """Proposals in the order of the images (RGB), masks of the images' sizes."""
        import torch

        inputs = self.processor(images=list(images), input_boxes=[[list(box)] for box in boxes], return_tensors="pt")
        sizes = inputs.pop("original_sizes"), inputs.pop("reshaped_input_sizes")
        inputs = {name: value.to(self.device, dtype=torch.float32) for name, value in inputs.items()}
        with torch.inference_mode(), autocast(self.device, self.config.dtype):
            outputs = self.model(**inputs, multimask_output=self.config.multimask)
        masks = self.processor.image_processor.post_process_masks(outputs.pred_masks.float().cpu(), *sizes)
        scores = outputs.iou_scores.float().cpu()
        return [
            ProposedMasks(mask[0].numpy(), score[0].clamp(0, 1).tolist())
            for mask, score in zip(masks, scores, strict=True)
        ]
