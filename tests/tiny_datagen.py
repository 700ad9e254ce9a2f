"""Very small models of every kind that makes a dataset, as folders in Hugging Face's format.

The Llama is trained for a few seconds until it answers in the caption format; the others have random weights.
"""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path

import torch
from tiny_diffusion import save_tiny_stable_diffusion, tiny_tokenizer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
    PreTrainedTokenizerFast,
    SamConfig,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    SwinConfig,
)

from datagen.block import Block
from datagen.captions import Caption, CaptionsConfig, render_prompt, render_reply
from datagen.config import Execution
from datagen.dataset import STAGES, Dataset, DatasetConfig
from datagen.dedup import DedupConfig
from datagen.gates import GatesConfig
from datagen.images import ImagesConfig
from datagen.masks import MasksConfig
from datagen.taxonomy import Taxonomy

TAXONOMY = {
    "classes": ["teapot", "dog", "robot", "vase"],
    "places": ["on a beach", "in a forest", "on a table"],
    "extras": ["at night", "in the rain"],
}
WORDS = ("shiny", "old", "small", "round", "lucky", "quiet", "brave", "odd")
SIZE = 64


def tiny_reply(subject: str, place: str, extra: str | None, words: tuple[str, str]) -> str:
    """What the tiny Llama learns to answer."""
    caption = f"a {words[0]} {words[1]} {subject} {place}{' ' + extra if extra else ''}"
    return render_reply(Caption(subject, subject, caption))


def save_tiny_llama(folder: Path, steps: int = 150) -> Path:
    """A Llama of two layers trained on the caption format of `TAXONOMY`, with a tokenizer of whole words."""
    torch.manual_seed(0)
    taxonomy = Taxonomy.model_validate(TAXONOMY)
    generator = torch.Generator().manual_seed(0)

    def example(seed: int) -> tuple[str, str]:
        request = taxonomy.request(seed)
        first, second = (WORDS[i] for i in torch.randint(len(WORDS), (2,), generator=generator).tolist())
        prompt = render_prompt(request.subject, request.place, request.extra)
        return prompt, tiny_reply(request.subject, request.place, request.extra, (first, second))

    tokens: dict[str, int] = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
    tokenizer = Tokenizer(WordLevel(tokens, unk_token="<unk>"))
    splitter = Split(" ", "merged_with_previous")
    for seed in range(400):
        for text in example(seed):
            for piece, _ in splitter.pre_tokenize_str(text):
                tokens.setdefault(piece, len(tokens))
    tokenizer.model = WordLevel(tokens, unk_token="<unk>")
    tokenizer.pre_tokenizer = splitter
    from tokenizers.decoders import Fuse

    tokenizer.decoder = Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        rows = []
        for number in range(16):
            prompt, reply = example(step * 16 + number)
            rows.append([1, *fast.encode(prompt), *fast.encode(reply), 2])
        length = max(map(len, rows))
        ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        loss = model(input_ids=ids, attention_mask=ids.ne(0), labels=ids.masked_fill(ids.eq(0), -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def save_tiny_owlvit(folder: Path) -> Path:
    """An OWL-ViT with random weights for images of 64 px."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    width = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = width | {"vocab_size": len(tokenizer), "max_position_embeddings": tokenizer.model_max_length}
    text |= {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = OwlViTConfig(
        text_config=text,
        vision_config=width | {"image_size": SIZE, "patch_size": 16},
        projection_dim=32,
    )
    OwlViTForObjectDetection(config).save_pretrained(folder)
    sides = {"height": SIZE, "width": SIZE}
    OwlViTProcessor(OwlViTImageProcessor(size=sides, crop_size=sides), tokenizer).save_pretrained(folder)
    return folder


def tiny_bert_tokenizer() -> BertTokenizer:
    """A BERT tokenizer of the nouns of `TAXONOMY`; its special tokens keep the ids that Grounding DINO asks for."""
    words = {101: "[CLS]", 102: "[SEP]", 1012: ".", 1029: "?", 0: "[PAD]", 100: "[UNK]", 103: "[MASK]"}
    words |= {1100 + number: noun for number, noun in enumerate(TAXONOMY["classes"])}
    return BertTokenizer(vocab={words.get(number, f"[unused{number}]"): number for number in range(1200)})


def save_tiny_grounding_dino(folder: Path) -> Path:
    """A Grounding DINO with random weights for images of 128 px."""
    torch.manual_seed(0)
    tokenizer = tiny_bert_tokenizer()
    config = GroundingDinoConfig(
        backbone_config=SwinConfig(
            image_size=128, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4,
            out_features=["stage2", "stage3", "stage4"], out_indices=[2, 3, 4],
        ),
        text_config=BertConfig(
            vocab_size=1200, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        ),
        num_queries=10, d_model=32, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_feature_levels=4,
    )  # fmt: skip
    GroundingDinoForObjectDetection(config).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 128, "longest_edge": 128})
    GroundingDinoProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def save_tiny_sam(folder: Path) -> Path:
    """A Segment Anything with random weights for images of 64 px."""
    torch.manual_seed(0)
    vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 64}
    vision |= {"image_size": SIZE, "patch_size": 8, "window_size": 4, "global_attn_indexes": [0], "num_pos_feats": 8}
    prompt = {"hidden_size": 16, "image_size": SIZE, "patch_size": 8, "image_embedding_size": SIZE // 8}
    decoder = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    decoder |= {"iou_head_hidden_dim": 16}
    SamModel(
        SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)
    ).save_pretrained(folder)
    square, half = {"height": SIZE, "width": SIZE}, {"height": SIZE // 4, "width": SIZE // 4}
    images = SamImageProcessor(
        size={"longest_edge": SIZE}, pad_size=square, mask_size={"longest_edge": SIZE // 4}, mask_pad_size=half
    )
    SamProcessor(images).save_pretrained(folder)
    return folder


@functools.cache
def tiny_models() -> Path:
    """A folder with llama, stable-diffusion, owlvit, sam and taxonomy.json, made once a test process."""
    folder = Path(tempfile.mkdtemp(prefix="tiny-datagen-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_tiny_llama(folder / "llama")
    save_tiny_stable_diffusion(folder / "stable-diffusion")
    save_tiny_owlvit(folder / "owlvit")
    save_tiny_sam(folder / "sam")
    (folder / "taxonomy.json").write_text(json.dumps(TAXONOMY))
    return folder


def tiny_dataset_config(models: Path, shards: int | None = 2, captions_per_shard: int = 8) -> DatasetConfig:
    """A dataset of a few captions; its gates let pass what random models make."""
    execution = Execution(device="cpu", batch_size=4, threads=1)
    return DatasetConfig(
        seed=7,
        captions_per_shard=captions_per_shard,
        shards=shards,
        shards_per_block=2,
        captions=CaptionsConfig(
            model=str(models / "llama"), taxonomy=str(models / "taxonomy.json"), max_new_tokens=40, execution=execution
        ),
        dedup=DedupConfig(near_duplicate=0.9, max_class_share=1.0, max_class_and_place_share=0.5),
        images=ImagesConfig(
            model=str(models / "stable-diffusion"), steps=2, min_brightness=0, min_contrast=0, execution=execution
        ),
        masks=MasksConfig(
            box_model=str(models / "owlvit"), mask_model=str(models / "sam"), min_stored_score=0, execution=execution
        ),
        gates=GatesConfig(min_box_score=0, min_predicted_iou=0, min_area=0, max_area=1, max_border=4),
    )


def build_alone(config: DatasetConfig, run: Path) -> list[str]:
    """Build a dataset in this process and without a flow; returns the shards that were made, "images/00003"."""
    dataset, made = Dataset(config, run), []
    for indices in dataset.blocks():
        block = Block(dataset)
        for stage in STAGES:
            for index in indices:
                if block.make(stage, index, lambda done, total: None) is not None:
                    made.append(f"{stage}/{index:05d}")
            dataset.check_survivors(stage, indices)
    dataset.leave_out_surplus(indices.stop)
    return made
