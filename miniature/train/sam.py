"""The miniature's Segment Anything: a mask from a box, on 128 px pictures."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

from miniature.train.data import SIZE, Pool, degrade_some, flip_some
from miniature.train.loop import fit
from miniature.train.workspace import Workspace

STEPS = 8000
BATCH = 16
SECOND_SHARE = 0.7  # of scenes with a second object
JITTER = 0.08  # of the box's sides: prompts come from a detector, not from the drawing


def build() -> SamModel:
    config = SamConfig(
        vision_config={
            "hidden_size": 96,
            "output_channels": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "mlp_dim": 384,
            "image_size": SIZE,
            "patch_size": 8,
            "window_size": 8,
            "num_pos_feats": 32,
            "global_attn_indexes": [1, 3],
        },
        prompt_encoder_config={
            "hidden_size": 64,
            "image_size": SIZE,
            "patch_size": 8,
            "image_embedding_size": SIZE // 8,
            "mask_input_channels": 8,
        },
        mask_decoder_config={
            "hidden_size": 64,
            "mlp_dim": 256,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "iou_head_hidden_dim": 64,
        },
    )
    return SamModel(config)


def build_processor() -> SamProcessor:
    half = [0.5, 0.5, 0.5]
    return SamProcessor(
        SamImageProcessor(
            size={"longest_edge": SIZE},
            pad_size={"height": SIZE, "width": SIZE},
            mask_size={"longest_edge": SIZE // 2},
            mask_pad_size={"height": SIZE // 2, "width": SIZE // 2},
            image_mean=half,
            image_std=half,
        )
    )


def sample_prompts(pool: Pool, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images (B, 3, 128, 128), masks (B, 128, 128) and jittered boxes (B, 4) in pixels; one object an image.

    Where a second object stands in the scene, it is the one to be masked most of the time: it is smaller.
    """
    indices = pool.sample_crowded(BATCH, generator)
    images = pool.images(indices)
    masks, boxes = pool.masks(indices), []
    second = torch.rand(BATCH, generator=generator) < SECOND_SHARE
    for row, index in enumerate(indices):
        scene = pool.scenes[index]
        box = scene["box"]
        if scene["second"] is not None and second[row]:
            box = scene["second"]["box"]
            masks[row] = pool.masks([index], "second_masks")[0]
        boxes.append(box)
    corners = torch.tensor(boxes)
    images, flipped = flip_some(images, generator)
    masks = torch.where(flipped[:, None, None], masks.flip(-1), masks)
    corners[flipped] = torch.stack([SIZE - corners[:, 2], corners[:, 1], SIZE - corners[:, 0], corners[:, 3]], -1)[
        flipped
    ]
    sides = (corners[:, 2:] - corners[:, :2]).repeat(1, 2)
    corners = corners + (torch.rand(corners.shape, generator=generator) * 2 - 1) * JITTER * sides
    return degrade_some(images, generator), masks, corners.clamp(0, SIZE)


def mask_losses(predicted: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy plus Dice of each candidate, and its true IoU, both (B, 3), of logits (B, 3, h, w)."""
    target = F.interpolate(masks[:, None], predicted.shape[-2:], mode="area").expand_as(predicted)
    entropy = F.binary_cross_entropy_with_logits(predicted, target, reduction="none").mean((-1, -2))
    probability = predicted.sigmoid()
    overlap = (probability * target).sum((-1, -2))
    dice = 1 - (2 * overlap + 1) / (probability.sum((-1, -2)) + target.sum((-1, -2)) + 1)
    hard, true = predicted > 0, target > 0.5
    union = (hard | true).sum((-1, -2)).clamp(min=1)
    return 5 * entropy + dice, (hard & true).sum((-1, -2)) / union


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    sam = workspace.beginning("sam", build())

    def loss_at(_step: int, generator: torch.Generator) -> Tensor:
        images, masks, boxes = (tensor.to(workspace.device) for tensor in sample_prompts(workspace.pool, generator))
        output = sam(pixel_values=images, input_boxes=boxes[:, None], multimask_output=True)
        losses, ious = mask_losses(output.pred_masks[:, 0], masks)
        return losses.min(-1).values.mean() + F.mse_loss(output.iou_scores[:, 0], ious)

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average)
        assert isinstance(finished, SamModel)

        def write(folder: Path) -> None:
            finished.half().save_pretrained(folder)
            build_processor().save_pretrained(folder)

        workspace.publish("sam", write)

    fit(
        "sam",
        sam,
        loss_at,
        steps=workspace.steps or STEPS,
        learning_rate=2e-3,
        state_folder=workspace.states,
        save=save,
    )
