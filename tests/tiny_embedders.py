"""A very small DINO-like ViT and CLIP with random weights, as Hugging Face folders, and a benchmark folder to score."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_diffusion import tiny_tokenizer
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model, ViTConfig, ViTModel


def save_tiny_dino(folder: Path, image_size: int = 32, seed: int = 0) -> Path:
    """A ViT of two layers, patches of 8 px and weights large enough for images to differ."""
    torch.manual_seed(seed)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=image_size,
        patch_size=8, initializer_range=0.2, layer_norm_eps=1e-6,
    )  # fmt: skip
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def save_tiny_dinov2(folder: Path, image_size: int = 32) -> Path:
    """A DINOv2 of two layers and patches of 8 px."""
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=image_size, patch_size=8,
        initializer_range=0.2,
    )  # fmt: skip
    Dinov2Model(config).save_pretrained(folder)
    return folder


def save_tiny_clip(folder: Path, image_size: int = 32, max_length: int = 77, seed: int = 0) -> Path:
    """A CLIP of two layers a tower that reads text letter by letter."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer(max_length)
    tower = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "initializer_range": 0.2,
    }  # fmt: skip
    config = CLIPConfig(
        text_config=tower
        | {
            "vocab_size": len(tokenizer),
            "max_position_embeddings": max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=tower | {"image_size": image_size, "patch_size": 8},
        projection_dim=24,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


OBJECT_PROMPTS = tuple(f"'a {{0}} {{1}} on table {number}'.format(unique_token, class_token)" for number in range(3))
LIVE_PROMPTS = tuple(f"'a {{0}} {{1}} wearing hat {number}'.format(unique_token, class_token)" for number in range(3))


def prompts_and_classes(
    classes: Mapping[str, str], objects: Sequence[str] = OBJECT_PROMPTS, live: Sequence[str] = LIVE_PROMPTS
) -> str:
    """The text of a prompts_and_classes.txt, whose prompts are lines of code without the comma."""
    lines = [
        "Classes",
        "",
        "subject_name,class",
        *(f"{name},{word}" for name, word in classes.items()),
        "",
        "Prompts",
        "",
    ]
    for title, prompts in (("Object Prompts", objects), ("Live Subject Prompts", live)):
        lines += [title, "", "prompt_list = [", *(f"{prompt}," for prompt in prompts[:-1]), prompts[-1], "]", ""]
    return "\n".join(lines)


def write_tiny_benchmark(folder: Path, images: int = 3, size: int = 48) -> Path:
    """A benchmark of four subjects in three classes, of coloured squares; cup_0 and cup_1 share their palette."""
    subjects = [
        {"name": "cup_0", "class": "cup", "live": False, "reference": "01.png", "palette_group": "red"},
        {"name": "cup_1", "class": "cup", "live": False, "reference": "00.png", "palette_group": "red"},
        {"name": "cup_2", "class": "cup", "live": False, "reference": "00.png"},
        {"name": "cat", "class": "tabby cat", "live": True, "reference": "02.png"},
    ]
    generator = np.random.default_rng(0)
    for subject in subjects:
        place = folder / str(subject["name"])
        place.mkdir(parents=True)
        colour = generator.integers(0, 255, 3)
        for number in range(images):
            pixels = generator.integers(0, 255, (size, size, 3))
            mask = np.zeros((size, size), np.uint8)
            left, top = generator.integers(4, size // 2 - 4, 2)
            mask[top : top + size // 2, left : left + size // 2] = 255
            pixels[mask > 0] = colour
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number:02d}.png")
            Image.fromarray(mask).save(place / f"{number:02d}.mask.png")
    (folder / "subjects.json").write_text(json.dumps({"benchmark": "tiny", "subjects": subjects}))
    classes = {str(subject["name"]): str(subject["class"]) for subject in subjects}
    (folder / "prompts_and_classes.txt").write_text(prompts_and_classes(classes))
    return folder
