"""The IP-Adapter baseline with small random weights in the public file's layout, by the benchmark's own flow."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_evaluation import CONFIG, World
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from dreamcache.dreambooth.generation import generate_cases
from dreamcache.dreambooth.ip_adapter import ip_adapted, sample_ip_adapter
from dreamcache.sampling import sample_images


def save_tiny_ip_adapter(folder, unet):
    """Keys as in the public SD 1.5 file: an image projection, and to_k_ip, to_v_ip of each text attention in order."""
    torch.manual_seed(0)
    width = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * width, 24), "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width), "image_proj.norm.bias": torch.zeros(width),
    }  # fmt: skip
    text_attentions = [name for name in unet.attn_processors if "attn2" in name]
    for number, name in enumerate(text_attentions):
        hidden = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn(hidden, width)
    (folder / "models").mkdir(parents=True)
    save_file(tensors, folder / "models/ip-adapter_sd15.safetensors")
    encoder = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8,
        projection_dim=24, initializer_range=0.2,
    )  # fmt: skip
    CLIPVisionModelWithProjection(encoder).save_pretrained(folder / "models/image_encoder")
    return folder


def difference(first, second):
    return max(np.abs(np.asarray(a, int) - np.asarray(b, int)).max() for a, b in zip(first, second, strict=True))


def test_ip_adapter_is_a_variant_and_leaves_the_backbone_as_it_was(tmp_path):
    world = World(tmp_path)
    location = save_tiny_ip_adapter(tmp_path / "ip-adapter", world.backbone.unet)
    prompts, seeds, sampling = ["a cup", "a cat on a table"], [3, 4], CONFIG.sampling
    plain = sample_images(world.backbone, None, None, prompts, sampling, seeds=seeds)
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    with ip_adapted(world.backbone, location, 0.0) as pipeline:
        off = sample_ip_adapter(pipeline, red, prompts, sampling, seeds)
    assert difference(off, plain) <= 1, "at scale 0 it is the backbone with the same seeds"
    with ip_adapted(world.backbone, location, 1.0) as pipeline:
        adapted = sample_ip_adapter(pipeline, red, prompts, sampling, seeds)
        alone = zip(prompts, seeds, strict=True)
        one_by_one = [sample_ip_adapter(pipeline, red, [prompt], sampling, [seed])[0] for prompt, seed in alone]
        other = sample_ip_adapter(pipeline, blue, prompts, sampling, seeds)
    assert difference(adapted, plain) > 3 and difference(adapted, other) > 1, "it sees its reference"
    assert difference(adapted, one_by_one) <= 1
    again = sample_images(world.backbone, None, None, prompts, sampling, seeds=seeds)
    assert difference(again, plain) == 0

    config = CONFIG.model_copy(update={"variants": ("ip-adapter", "no-adapters"), "prompts": 1, "subjects": 2})
    evaluation = world.evaluation(
        tmp_path / "evaluation", config, models=world.models | {"ip_adapter": "i" * 64, "adapters": "none"}
    )
    with pytest.raises(ValueError, match="the variant ip-adapter needs IP-Adapter"):
        generate_cases(evaluation, world.backbone, None)
    assert generate_cases(evaluation, world.backbone, None, ip_adapter=location) == 4
    recipe = evaluation.image_plan("ip-adapter", world.benchmark.subjects[0]).recipe
    assert recipe["models"].keys() == {"backbone", "ip_adapter"}
    assert recipe["settings"]["sampling"]["ip_adapter_scale"] == 0.6
    with pytest.raises(ValueError, match="no IP-Adapter for this backbone"), ip_adapted(world.backbone, tmp_path, 1.0):
        pass
