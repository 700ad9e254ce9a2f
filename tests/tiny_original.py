"""Grounding DINO in its Swin-T configuration and a small Segment Anything, with random weights, twice: as folders of
transformers, and as checkpoints of the authors' packages; with the map from one's keys to the other's."""

import math
import re
from pathlib import Path

import torch
from tiny_datagen import tiny_bert_tokenizer
from torch import Tensor, nn
from transformers import (
    BertConfig,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SwinConfig,
)

# (pattern of a key in transformers, the authors' key). Where a target ends in [q], [k] or [v], the three are one tensor
# there; None: the authors' model has no such tensor.
SWIN = r"model\.backbone\.conv_encoder\.model\."
DETECTOR_KEYS: list[tuple[str, str | None]] = [
    (SWIN + r"swin\.layernorm\..*", None),
    (SWIN + r"hidden_states_norms\.stage2\.", "backbone.0.norm1."),
    (SWIN + r"hidden_states_norms\.stage3\.", "backbone.0.norm2."),
    (SWIN + r"hidden_states_norms\.stage4\.", "backbone.0.norm3."),
    (SWIN + r"swin\.embeddings\.norm\.", "backbone.0.patch_embed.norm."),
    (SWIN + r"swin\.embeddings\.patch_embeddings\.projection\.", "backbone.0.patch_embed.proj."),
    (SWIN + r"swin\.encoder\.", "backbone.0."),
    (r"\.attention\.relative_position_bias\.relative", ".attn.relative"),
    (r"(backbone.*)\.attention\.([qkv])_proj\.(weight|bias)", r"\1.attn.qkv.\3[\2]"),
    (r"(backbone.*)\.attention\.o_proj\.", r"\1.attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"model\.text_backbone\.", "bert."),
    (r"model\.text_projection\.", "feat_map."),
    (r"model\.input_proj_vision\.", "input_proj."),
    (r"model\.level_embed", "transformer.level_embed"),
    (r"model\.query_position_embeddings\.", "transformer.tgt_embed."),
    (r"model\.encoder_output_bbox_embed\.", "transformer.enc_out_bbox_embed."),
    (r"model\.enc_output", "transformer.enc_output"),
    (r"model\.(encoder|decoder)\.", r"transformer.\1."),
    (r"decoder\.layer_norm\.", "decoder.norm."),
    (r"reference_points_head\.", "ref_point_head."),
    (r"encoder\.layers\.(\d+)\.deformable_layer\.", r"encoder.layers.\1."),
    (r"encoder\.layers\.(\d+)\.fusion_layer\.", r"encoder.fusion_layers.\1."),
    (r"encoder\.layers\.(\d+)\.text_enhancer_layer\.", r"encoder.text_layers.\1."),
    (r"(encoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm1."),
    (r"(encoder\.layers\.\d+\.)final_layer_norm\.", r"\1norm2."),
    (r"(text_layers\.\d+\.)layer_norm_before\.", r"\1norm1."),
    (r"(text_layers\.\d+\.)layer_norm_after\.", r"\1norm2."),
    (r"(decoder\.layers\.\d+\.)encoder_attn_layer_norm\.", r"\1norm1."),
    (r"(decoder\.layers\.\d+\.)self_attn_layer_norm\.", r"\1norm2."),
    (r"(decoder\.layers\.\d+\.)final_layer_norm\.", r"\1norm3."),
    (r"encoder_attn_text_layer_norm\.", "catext_norm."),
    (r"encoder_attn_text\.", "ca_text."),
    (r"encoder_attn\.", "cross_attn."),
    (r"(transformer.*)\.fc([12])\.", r"\1.linear\2."),
    (r"\.(query|key|value)\.(weight|bias)$", lambda m: f".in_proj_{m[2]}[{m[1][0]}]"),  # type: ignore[list-item]
    (r"fusion_layers(.*)\.out_text_proj\.", r"fusion_layers\1.out_l_proj."),
    (r"fusion_layers(.*)\.out_vision_proj\.", r"fusion_layers\1.out_v_proj."),
    (r"fusion_layers(.*)\.values_text_proj\.", r"fusion_layers\1.values_l_proj."),
    (r"fusion_layers(.*)\.values_vision_proj\.", r"fusion_layers\1.values_v_proj."),
    (r"fusion_layers(.*)\.text_proj\.", r"fusion_layers\1.l_proj."),
    (r"fusion_layers(.*)\.vision_proj\.", r"fusion_layers\1.v_proj."),
    (r"fusion_layers(.*)\.layer_norm_text\.", r"fusion_layers\1.layer_norm_l."),
    (r"fusion_layers(.*)\.layer_norm_vision\.", r"fusion_layers\1.layer_norm_v."),
    (r"fusion_layers(.*)\.text_param", r"fusion_layers\1.gamma_l"),
    (r"fusion_layers(.*)\.vision_param", r"fusion_layers\1.gamma_v"),
]
SEGMENTER_KEYS: list[tuple[str, str | None]] = [
    (r"shared_image_embedding\..*", None),  # the prompt encoder holds the same one
    (r"vision_encoder\.", "image_encoder."),
    (r"image_encoder\.layers\.", "image_encoder.blocks."),
    (r"patch_embed\.projection\.", "patch_embed.proj."),
    (r"neck\.conv1\.", "neck.0."),
    (r"neck\.layer_norm1\.", "neck.1."),
    (r"neck\.conv2\.", "neck.2."),
    (r"neck\.layer_norm2\.", "neck.3."),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
    (r"mask_embed\.conv1\.", "mask_downscaling.0."),
    (r"mask_embed\.layer_norm1\.", "mask_downscaling.1."),
    (r"mask_embed\.conv2\.", "mask_downscaling.3."),
    (r"mask_embed\.layer_norm2\.", "mask_downscaling.4."),
    (r"mask_embed\.conv3\.", "mask_downscaling.6."),
    (r"mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
    (r"mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
    (r"mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
    (r"((?:iou_prediction_head|output_hypernetworks_mlps\.\d))\.layers\.0\.", r"\1.layers.1."),
    (r"((?:iou_prediction_head|output_hypernetworks_mlps\.\d))\.proj_in\.", r"\1.layers.0."),
    (r"((?:iou_prediction_head|output_hypernetworks_mlps\.\d))\.proj_out\.", r"\1.layers.2."),
    (r"\.layer_norm", ".norm"),
]  # fmt: skip


def original_state(model: nn.Module, keys: list[tuple[str, str | None]]) -> dict[str, Tensor]:
    """The weights of a model of transformers under the keys of its authors' package."""
    found: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    # The authors keep the table of relative positions in the checkpoint; transformers computes it.
    tables = {
        key: value.view(math.isqrt(len(value)), -1)
        for key, value in model.named_buffers()
        if key.endswith("relative_position_index")
    }
    for key, value in (model.state_dict() | tables).items():
        for pattern, target in keys:
            if target is None and re.fullmatch(pattern, key):
                break
            # BERT and Segment Anything keep the names of queries, keys and values apart.
            if target is not None and not (callable(target) and key.startswith("bert.")):
                key = re.sub(pattern, target, key)
        else:
            name, _, third = key.partition("[")
            if third:
                thirds.setdefault(name, {})[third[0]] = value
            else:
                found[name] = value
    return found | {name: torch.cat([parts[third] for third in "qkv"]) for name, parts in thirds.items()}


def save_grounding_dino(folder: Path, short: int, long: int) -> tuple[Path, Path, Path]:
    """Grounding DINO, Swin-T, with a BERT of two small layers: the authors' checkpoint, BERT's folder, the port's."""
    tokenizer = tiny_bert_tokenizer()
    text = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    backbone = SwinConfig(
        image_size=224, embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=7,
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(GroundingDinoConfig(backbone_config=backbone, text_config=text))
    _perturb(model)
    with torch.no_grad():  # untrained logits are so large that all scores would be one
        model.model.decoder.layer_norm.weight *= 0.02
        model.model.decoder.layer_norm.bias *= 0.02
    model.save_pretrained(folder / "port")
    images = GroundingDinoImageProcessor(size={"shortest_edge": short, "longest_edge": long})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder / "port")
    text.save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    state = original_state(model, DETECTOR_KEYS)
    # The port leaves out BERT's pooler, which the detector does not use, and what transformers computes itself.
    state |= {"bert.pooler.dense.weight": torch.zeros(32, 32), "bert.pooler.dense.bias": torch.zeros(32)}
    state |= {"label_enc.weight": torch.zeros(3, 3)}
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}}, folder / "detector.pth")
    return folder / "detector.pth", folder / "bert", folder / "port"


def save_segment_anything(folder: Path) -> tuple[Path, Path]:
    """Segment Anything with a ViT of two small layers, one windowed, one global: the authors' file, the port."""
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 128}
    torch.manual_seed(0)
    model = SamModel(SamConfig(vision_config=vision | {"global_attn_indexes": [1]}))
    _perturb(model)
    model.save_pretrained(folder / "sam-port")
    SamProcessor(SamImageProcessor()).save_pretrained(folder / "sam-port")
    torch.save(original_state(model, SEGMENTER_KEYS), folder / "sam.pth")
    return folder / "sam.pth", folder / "sam-port"


def _perturb(model: nn.Module) -> None:
    """Move every weight, so that what training would start at zero or one counts too."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
