"""The miniature's text-grounded detector: an OWL-ViT that grows out of the miniature CLIP.

Grounding DINO at this size did not learn to read from boxes alone: it scored present and absent nouns alike.
OWL-ViT starts from towers that already match words to pictures and only adds a box and a class head to each patch.
"""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor
from transformers.image_transforms import center_to_corners_format
from transformers.loss.loss_for_object_detection import generalized_box_iou

from miniature.subjects import CLASSES
from miniature.train.data import SIZE, Pool, degrade_some, flip_some
from miniature.train.loop import fit
from miniature.train.tokenizers import load_clip_tokenizer
from miniature.train.workspace import Workspace

STEPS = 3800
BATCH = 32
QUERY_LENGTH = 16
GRID = SIZE // 16
QUERY_FORMS = ("{}", "{}.", "a {}", "a photo of a {}")


def build(clip: CLIPModel) -> OwlViTForObjectDetection:
    """An OWL-ViT whose towers carry the weights of `clip`, position tables cut to their length."""
    text, vision = clip.config.text_config, clip.config.vision_config
    shared = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = OwlViTConfig(
        text_config={name: getattr(text, name) for name in (*shared, "vocab_size")}
        | {"max_position_embeddings": QUERY_LENGTH, "hidden_act": text.hidden_act}
        | {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
        vision_config={name: getattr(vision, name) for name in (*shared, "image_size", "patch_size", "hidden_act")},
        projection_dim=clip.config.projection_dim,
    )
    detector = OwlViTForObjectDetection(config)
    own = detector.owlvit.state_dict()
    for name, tensor in clip.state_dict().items():
        name = name.replace("pre_layrnorm", "pre_layernorm")
        if name in own:
            own[name].copy_(tensor[: len(own[name])] if tensor.dim() else tensor)
    _begin_heads(detector, clip)
    return detector


@torch.no_grad()
def _begin_heads(detector: OwlViTForObjectDetection, clip: CLIPModel) -> None:
    """Heads that begin with CLIP's projection, few answers and a box of a patch's size.

    The library begins them with weights of unit deviation, from which nothing is learned.
    """
    box_head, class_head = detector.box_head, detector.class_head
    for layer in (box_head.dense0, box_head.dense1):
        nn.init.xavier_uniform_(layer.weight)
    nn.init.normal_(box_head.dense2.weight, std=0.02)
    class_head.dense0.weight.copy_(clip.visual_projection.weight)
    for layer, bias in ((class_head.logit_scale, 10.0), (class_head.logit_shift, -0.4)):
        nn.init.normal_(layer.weight, std=0.02)
        nn.init.constant_(layer.bias, bias)


def build_processor(clip_folder: Path) -> OwlViTProcessor:
    tokenizer = load_clip_tokenizer(clip_folder)
    tokenizer.model_max_length = QUERY_LENGTH
    # A processor takes its defaults from what the tokenizer was saved with: CLIP's length would outgrow the positions.
    tokenizer.init_kwargs["max_length"] = QUERY_LENGTH
    half = [0.5, 0.5, 0.5]
    image_processor = OwlViTImageProcessor(
        size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}, image_mean=half, image_std=half
    )
    return OwlViTProcessor(image_processor=image_processor, tokenizer=tokenizer)


def noun_boxes(pool: Pool, indices: list[int], flipped: Tensor) -> Tensor:
    """The box of every class in every scene as (B, len(CLASSES), 4): corners in [0, 1], NaN where it is not shown."""
    boxes = torch.full((len(indices), len(CLASSES), 4), float("nan"))
    for row, index in enumerate(indices):
        scene = pool.scenes[index]
        for shown in (scene, scene["second"]):
            if shown is not None:
                left, top, right, bottom = (side / SIZE for side in shown["box"])
                if flipped[row]:
                    left, right = 1 - right, 1 - left
                boxes[row, CLASSES.index(shown["class"])] = torch.tensor([left, top, right, bottom])
    return boxes


def answer(detector: OwlViTForObjectDetection, images: Tensor, tokens: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Patch-noun logits (B, P, Q) and boxes (B, P, 4) of images asked for the same Q nouns, which are read once.

    The library's own forward pass reads the nouns of each image anew.
    """
    nouns = detector.owlvit.text_model(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    nouns = detector.owlvit.text_projection(nouns).expand(len(images), -1, -1)
    features, _ = detector.image_embedder(pixel_values=images)
    patches = features.flatten(1, 2)
    return detector.class_predictor(patches, nouns)[0], detector.box_predictor(patches, features)


def patch_targets(boxes: Tensor) -> Tensor:
    """Which patches answer for a box: those whose centre lies in its middle half; (B, Q, 4) -> (B, GRID^2, Q) bool."""
    centres = (torch.arange(GRID, device=boxes.device) + 0.5) / GRID
    x, y = centres.repeat(GRID)[None, :, None], centres.repeat_interleave(GRID)[None, :, None]
    left, top, right, bottom = boxes[:, None].unbind(-1)
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    reach_x = ((right - left) / 4).clamp(min=0.5 / GRID)
    reach_y = ((bottom - top) / 4).clamp(min=0.5 / GRID)
    return ((x - middle_x).abs() <= reach_x) & ((y - middle_y).abs() <= reach_y)  # NaN compares false


def detection_loss(logits: Tensor, predicted: Tensor, boxes: Tensor) -> Tensor:
    """Focal loss of patch-noun logits (B, P, Q), L1 and GIoU of the boxes (B, P, 4) of answering patches."""
    answers = patch_targets(boxes)
    target = answers.float()
    probability = logits.sigmoid()
    wrongness = target * (1 - probability) + (1 - target) * probability
    weight = (0.75 * target + 0.25 * (1 - target)) * wrongness.square()
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    count = answers.sum().clamp(min=1)
    classification = (weight * entropy).sum() / count
    image, patch, query = answers.nonzero(as_tuple=True)
    corners = center_to_corners_format(predicted[image, patch])
    wanted = boxes[image, query]
    overlap = torch.diag(generalized_box_iou(corners, wanted))
    return 4 * classification + 5 * F.l1_loss(corners, wanted) + 2 * (1 - overlap).mean()


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    clip_folder = workspace.checkpoints / "clip"
    grown = build(CLIPModel.from_pretrained(clip_folder, dtype=torch.float32))
    detector = workspace.beginning("detector", grown)
    processor = build_processor(clip_folder)

    def loss_at(_step: int, generator: torch.Generator) -> Tensor:
        indices = workspace.pool.sample_crowded(BATCH, generator)
        images, flipped = flip_some(workspace.pool.images(indices), generator)
        boxes = noun_boxes(workspace.pool, indices, flipped).to(workspace.device)
        forms = torch.randint(len(QUERY_FORMS), (len(CLASSES),), generator=generator).tolist()
        texts = [QUERY_FORMS[form].format(noun) for form, noun in zip(forms, CLASSES, strict=True)]
        tokens = processor.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
        images = degrade_some(images, generator)
        return detection_loss(*answer(detector, images.to(workspace.device), tokens.to(workspace.device)), boxes)

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average)
        assert isinstance(finished, OwlViTForObjectDetection)

        def write(folder: Path) -> None:
            finished.half().save_pretrained(folder)
            processor.save_pretrained(folder)

        workspace.publish("detector", write)

    fit(
        "detector",
        detector,
        loss_at,
        steps=workspace.steps or STEPS,
        learning_rate=2e-3,
        state_folder=workspace.states,
        save=save,
    )
