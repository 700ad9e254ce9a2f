"""The miniature CLIP: a text and a vision tower that meet in one space.

Few attributes make many captions of a batch true of many pictures, so the targets are the truth: each phrase is
matched to every scene of the batch that it is true of. Shapes are harder to see than places; so the patches on an
object, averaged, are matched to its noun too, which is also what the detector grows from.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from miniature.grammar import vocabulary_text, with_article
from miniature.subjects import CLASSES
from miniature.train.data import SIZE
from miniature.train.examples import sample_phrase
from miniature.train.loop import fit
from miniature.train.tokenizers import TEXT_LENGTH, build_clip_tokenizer
from miniature.train.workspace import Workspace

STEPS = 4000
BATCH = 96
PATCH = 16


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": TEXT_LENGTH,
            "projection_dim": 128,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": 160,
            "intermediate_size": 640,
            "num_hidden_layers": 4,
            "num_attention_heads": 5,
            "image_size": SIZE,
            "patch_size": PATCH,
            "projection_dim": 128,
        },
        projection_dim=128,
    )
    return CLIPModel(config)


def build_processor(tokenizer: CLIPTokenizer) -> CLIPProcessor:
    image_processor = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_convert_rgb=True
    )
    return CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer)


def truth_table(stated: list[dict[str, str]], scenes: list[dict[str, Any]]) -> Tensor:
    """Whether phrase i is true of scene j: all that it states holds there; (phrases, scenes) float."""
    return torch.tensor([[float(all(scene[k] == v for k, v in said.items())) for scene in scenes] for said in stated])


def matching_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Cross-entropy both ways with the matches of each row sharing its probability; (phrases, scenes) both."""
    to_scene = truth / truth.sum(1, keepdim=True)
    to_phrase = (truth / truth.sum(0, keepdim=True)).T
    return (F.cross_entropy(logits, to_scene) + F.cross_entropy(logits.T, to_phrase)) / 2


def object_vectors(clip: CLIPModel, patches: Tensor, masks: Tensor) -> Tensor:
    """The patches (B, GRID^2, D) averaged over the masks (B, 128, 128), projected to unit vectors (B, E)."""
    weights = F.avg_pool2d(masks[:, None], PATCH).flatten(1)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    pooled = clip.vision_model.post_layernorm((weights[..., None] * patches).sum(1))
    return F.normalize(clip.visual_projection(pooled), dim=-1)


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    tokenizer = build_clip_tokenizer(vocabulary_text())
    clip = build(tokenizer).to(workspace.device)
    processor = build_processor(tokenizer)
    mean = torch.tensor(processor.image_processor.image_mean)[:, None, None]
    deviation = torch.tensor(processor.image_processor.image_std)[:, None, None]

    noun_tokens = tokenizer([with_article(name) for name in CLASSES], padding="max_length", return_tensors="pt")
    noun_tokens = noun_tokens.to(workspace.device)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        indices = workspace.pool.sample(BATCH, generator)
        scenes = [workspace.pool.scenes[index] for index in indices]
        rng = np.random.default_rng([2, step])
        texts, stated = zip(*(sample_phrase(scene, rng) for scene in scenes), strict=True)
        tokens = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        images = workspace.pool.images(indices)
        images = ((images + 1) / 2 - mean) / deviation
        output = clip(
            pixel_values=images.to(workspace.device),
            input_ids=tokens["input_ids"].to(workspace.device),
            attention_mask=tokens["attention_mask"].to(workspace.device),
        )
        truth = truth_table(list(stated), scenes).to(workspace.device)
        patches = output.vision_model_output.last_hidden_state[:, 1:]
        nouns = clip.get_text_features(**noun_tokens).pooler_output
        objects = object_vectors(clip, patches, workspace.pool.masks(indices).to(workspace.device))
        logits = clip.logit_scale.exp() * objects @ F.normalize(nouns, dim=-1).T
        wanted = torch.tensor([CLASSES.index(scene["class"]) for scene in scenes], device=workspace.device)
        return matching_loss(output.logits_per_text, truth) + F.cross_entropy(logits, wanted)

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average)
        assert isinstance(finished, CLIPModel)

        def write(folder: Path) -> None:
            finished.half().save_pretrained(folder)
            processor.save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        workspace.publish("clip", write)

    fit(
        "clip",
        clip,
        loss_at,
        steps=workspace.steps or STEPS,
        learning_rate=1e-3,
        weight_decay=0.05,
        state_folder=workspace.states,
        save=save,
    )
