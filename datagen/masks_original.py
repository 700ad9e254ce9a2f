"""Boxes and masks by the packages of the models' authors: groundingdino-py and segment-anything."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datagen.config import autocast, torch_device
from datagen.identity import checkpoint_file, loading
from datagen.masks import Box, MasksConfig, ProposedMasks, ScoredBox, best_boxes

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

BOX_CHECKPOINT, MASK_CHECKPOINT = "groundingdino_swint_ogc.pth", "sam_vit_h_4b8939.pth"

# How the detector was trained to see: the image's short side, unless the long one would exceed its own limit.
SHORT_SIDE, LONG_SIDE = 800, 1333
IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Left over in the published checkpoint from training, and from an older transformers.
UNUSED_KEYS = {"label_enc.weight", "bert.embeddings.position_ids"}

WINDOW = 14  # of Segment Anything's windowed attention


class OriginalBoxFinder:
    """Grounding DINO, Swin-T, by groundingdino-py."""

    def __init__(self, config: MasksConfig) -> None:
        self.config = config
        self.device = torch_device(config.execution)
        path = checkpoint_file(config.box_model, BOX_CHECKPOINT, "masks.box_model")
        state = _read_checkpoint(path, "masks.box_model")
        state = {key.removeprefix("module."): value for key, value in state.get("model", state).items()}
        model = _untrained_detector(config)
        _load_strictly(model, {key: state[key] for key in state if key not in UNUSED_KEYS}, path, "masks.box_model")
        self.model = model.to(self.device).eval()

    def find(self, images: Sequence[Image], nouns: Sequence[str]) -> list[list[ScoredBox]]:
        """Boxes in the order of the images (RGB, all of one size), clipped to the image, best first."""
        import torch

        pixels = torch.stack([_pixels(image) for image in images]).to(self.device)
        queries = [self.config.query.format(noun=noun) for noun in nouns]
        with torch.inference_mode():
            outputs = self.model(pixels, captions=queries)
        # A box's score is that of its best word; words beyond a query's own are minus infinity.
        scores = outputs["pred_logits"].sigmoid().amax(dim=-1).cpu()
        centres, sizes = outputs["pred_boxes"].cpu().split(2, dim=-1)
        corners = torch.cat([centres - sizes / 2, centres + sizes / 2], dim=-1)
        found = []
        for image, boxes, own in zip(images, corners, scores, strict=True):
            scaled = boxes * torch.tensor([image.width, image.height] * 2)
            found.append(best_boxes(list(map(ScoredBox, scaled.tolist(), own.tolist())), image, self.config))
        return found


class OriginalMaskCutter:
    """Segment Anything by its own package, prompted with a box; the size of its ViT is read off the checkpoint."""

    def __init__(self, config: MasksConfig) -> None:
        transforms = importlib.import_module("segment_anything.utils.transforms")
        build = importlib.import_module("segment_anything.build_sam")
        self.config = config
        self.device = torch_device(config.execution)
        path = checkpoint_file(config.mask_model, MASK_CHECKPOINT, "masks.mask_model")
        state = _read_checkpoint(path, "masks.mask_model")
        try:
            model = build._build_sam(**_vit_sizes(state))
        except (KeyError, IndexError, ZeroDivisionError):
            raise ValueError(f"masks.mask_model: {path} is no checkpoint of Segment Anything") from None
        _load_strictly(model, state, path, "masks.mask_model")
        self.model = model.to(self.device).eval()
        self.transform = transforms.ResizeLongestSide(model.image_encoder.img_size)

    def cut(self, images: Sequence[Image], boxes: Sequence[Box]) -> list[ProposedMasks]:
        """Proposals in the order of the images (RGB), masks of the images' sizes."""
        import numpy as np
        import torch

        inputs = []
        for image, box in zip(images, boxes, strict=True):
            size = (image.height, image.width)
            pixels = torch.from_numpy(self.transform.apply_image(np.asarray(image))).permute(2, 0, 1)
            scaled = torch.from_numpy(self.transform.apply_boxes(np.array([box], dtype=np.float32), size))
            inputs.append({"image": pixels.to(self.device), "original_size": size, "boxes": scaled.to(self.device)})
        with torch.inference_mode(), autocast(self.device, self.config.dtype):
            outputs = self.model(inputs, multimask_output=self.config.multimask)
        return [
            ProposedMasks(one["masks"][0].cpu().numpy(), one["iou_predictions"][0].float().clamp(0, 1).tolist())
            for one in outputs
        ]


def _pixels(image: Image) -> torch.Tensor:
    """An image as the detector sees it: (3, H, W), resized and normalized."""
    import numpy as np
    import torch
    from PIL import Image

    short = min(SHORT_SIDE, round(LONG_SIDE * min(image.size) / max(image.size)))
    size = (short * image.width // min(image.size), short * image.height // min(image.size))
    values = np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float32) / 255
    normalized = (values - np.array(IMAGE_MEAN, dtype=np.float32)) / np.array(IMAGE_STD, dtype=np.float32)
    return torch.from_numpy(normalized).permute(2, 0, 1)


def _untrained_detector(config: MasksConfig) -> torch.nn.Module:
    """Grounding DINO in its Swin-T configuration, with a BERT of the text model's sizes.

    The package's own wrapper of BERT calls functions that transformers 5 has no more, and the package asks the Hub for
    BERT's weights, which the checkpoint holds anyway: while it builds, both are replaced.
    """
    from transformers import AutoConfig, AutoTokenizer, BertModel

    network = importlib.import_module("groundingdino.models.GroundingDINO.groundingdino")
    lookup = importlib.import_module("groundingdino.util.get_tokenlizer")
    package = Path(importlib.import_module("groundingdino").__file__ or "").parent
    swin_t = str(package / "config" / "GroundingDINO_SwinT_OGC.py")
    settings = importlib.import_module("groundingdino.util.slconfig").SLConfig.fromfile(swin_t)

    class SentenceBert(BertModel):
        """BERT whose attention mask says, for each word, which words stand in the same sentence: (B, L, L)."""

        def forward(self, input_ids: Any, attention_mask: Any, **more: Any) -> Any:
            return super().forward(input_ids, attention_mask=attention_mask[:, None].bool(), **more)

    assert config.text_model is not None
    with loading(config.text_model, "masks.text_model") as pinned:
        tokenizer = AutoTokenizer.from_pretrained(config.text_model, **pinned)
        bert = SentenceBert(AutoConfig.from_pretrained(config.text_model, **pinned))
    # Checkpointing trades time for memory in training alone.
    settings.use_checkpoint = settings.use_transformer_ckpt = False
    with (
        contextlib.redirect_stdout(io.StringIO()),  # the package prints its configuration
        _replaced(lookup, "get_tokenlizer", lambda _: tokenizer),
        _replaced(lookup, "get_pretrained_language_model", lambda _: bert),
        _replaced(network, "BertModelWarper", lambda bert_model: bert_model),
    ):
        model = network.build_groundingdino(settings)
    for layer in model.transformer.encoder.text_layers:
        layer.register_forward_pre_hook(_own_masks, with_kwargs=True)
    return model


def _own_masks(layer: Any, inputs: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The inputs of a layer over a batch's queries, where each query has its own mask (B, L, L) in all attention heads.

    torch's attention counts masks query by query; the package repeats them head by head, so that in a batch most heads
    would read a query through the mask of another.
    """
    return inputs, named | {"src_mask": named["src_mask"].repeat_interleave(layer.nhead, dim=0)}


def _vit_sizes(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The sizes of Segment Anything's ViT. Tables of relative positions have a row for each distance: fewer where the
    attention is windowed."""
    width = state["image_encoder.patch_embed.proj.weight"].shape[0]
    tables: list[tuple[int, ...]] = []
    while (key := f"image_encoder.blocks.{len(tables)}.attn.rel_pos_h") in state:
        tables.append(tuple(state[key].shape))
    return {
        "encoder_embed_dim": width,
        "encoder_depth": len(tables),
        "encoder_num_heads": width // tables[0][1],
        "encoder_global_attn_indexes": [n for n, table in enumerate(tables) if table[0] != 2 * WINDOW - 1],
    }


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _read_checkpoint(path: Path, name: str) -> dict[str, Any]:
    """The content of a checkpoint file; nothing but tensors and plain containers is unpickled."""
    import pickle

    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first_line = (str(error).strip().splitlines() or ["it is empty"])[0]
        raise ValueError(f"{name}: {path} is no checkpoint of weights alone ({first_line})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name}: {path} holds no dictionary of weights")
    return content


def _load_strictly(model: torch.nn.Module, state: Mapping[str, Any], path: Path, name: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        differences = " ".join(str(error).split())[:300]
        raise ValueError(f"{name}: {path} holds other weights than the model: {differences}") from None
