"""The miniature CLIP: a text and a vision tower that meet in one space.

Few attributes make many captions of a batch true of many pictures, so the targets are the truth: each phrase is
matched to every scene of the batch that it is true of. Shapes are harder to see than places; so each picture is
matched to its noun and to its place alone too, and so is each patch on an object to the object's noun, which is also
what the detector grows from.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BatchEncoding, CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from miniature.grammar import vocabulary_text, with_article
from miniature.places import PHRASES, PLACES
from miniature.subjects import CLASSES
from miniature.train.data import SIZE, Pool, flip_some
from miniature.train.examples import pick, sample_phrase
from miniature.train.loop import fit
from miniature.train.tokenizers import TEXT_LENGTH, build_clip_tokenizer
from miniature.train.workspace import Workspace

STEPS = 4800
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


def similarities(left: Tensor, right: Tensor) -> Tensor:
    """Cosines of (N, E) with (M, E) unit vectors, in float32: a temperature multiplies their rounding; (N, M)."""
    with torch.autocast(left.device.type, enabled=False):
        return left.float() @ right.float().T


def object_patches(masks: Tensor) -> Tensor:
    """Which patches an object covers by at least a third; masks (B, 128, 128) -> (B, GRID^2) bool."""
    return F.avg_pool2d(masks[:, None], PATCH).flatten(1) >= 1 / 3


def named_patches(pool: Pool, indices: list[int], flipped: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Image, patch and class index of every patch on an object of these scenes, those `flipped` mirrored."""
    image, patch, wanted = [], [], []
    scenes = [pool.scenes[index] for index in indices]
    for name, objects in (("masks", scenes), ("second_masks", [scene["second"] for scene in scenes])):
        masks = pool.masks(indices, name)
        covered = object_patches(torch.where(flipped[:, None, None], masks.flip(-1), masks))
        rows, columns = covered.nonzero(as_tuple=True)
        image.append(rows)
        patch.append(columns)
        wanted += [CLASSES.index(objects[row]["class"]) for row in rows.tolist()]
    return torch.cat(image), torch.cat(patch), wanted


def text_vectors(clip: CLIPModel, tokens: BatchEncoding) -> Tensor:
    """Unit vectors of texts, (N, E)."""
    return F.normalize(clip.get_text_features(**tokens).pooler_output, dim=-1)


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    tokenizer = build_clip_tokenizer(vocabulary_text())
    clip = workspace.beginning("clip", build(tokenizer))
    processor = build_processor(tokenizer)
    mean = torch.tensor(processor.image_processor.image_mean)[:, None, None]
    deviation = torch.tensor(processor.image_processor.image_std)[:, None, None]

    def tokens_of(texts: list[str]) -> BatchEncoding:
        return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").to(workspace.device)

    noun_tokens = tokens_of([with_article(name) for name in CLASSES])

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        indices = workspace.pool.sample(BATCH, generator)
        scenes = [workspace.pool.scenes[index] for index in indices]
        rng = np.random.default_rng([2, step])
        texts, stated = zip(*(sample_phrase(scene, rng) for scene in scenes), strict=True)
        images, flipped = flip_some(workspace.pool.images(indices), generator)
        images = ((images + 1) / 2 - mean) / deviation
        output = clip(pixel_values=images.to(workspace.device), **tokens_of(list(texts)))
        scale = clip.logit_scale.exp()

        def naming(vectors: Tensor, texts: Tensor, wanted: list[int]) -> Tensor:
            return F.cross_entropy(scale * similarities(vectors, texts), torch.tensor(wanted, device=workspace.device))

        nouns = text_vectors(clip, noun_tokens)
        places = text_vectors(clip, tokens_of([pick(rng, PHRASES[place]) for place in PLACES]))
        classes = [CLASSES.index(scene["class"]) for scene in scenes]
        patches = clip.vision_model.post_layernorm(output.vision_model_output.last_hidden_state[:, 1:])
        truth = truth_table(list(stated), scenes).to(workspace.device)
        loss = matching_loss(scale * similarities(output.text_embeds, output.image_embeds), truth)
        loss = loss + naming(output.image_embeds, nouns, classes)
        loss = loss + naming(output.image_embeds, places, [PLACES.index(scene["place"]) for scene in scenes])
        image, patch, wanted = named_patches(workspace.pool, indices, flipped)
        seen = clip.visual_projection(patches[image, patch])
        return loss + naming(F.normalize(seen, dim=-1), nouns, wanted)

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
        learning_rate=2e-3,
        weight_decay=0.05,
        state_folder=workspace.states,
        save=save,
    )
