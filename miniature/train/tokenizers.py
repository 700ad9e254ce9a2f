"""Byte-pair tokenizers of the miniature, learned from every sentence form that its grammar can emit."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from tokenizers import trainers as tokenizer_trainers
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

TEXT_LENGTH = 32


def build_clip_tokenizer(sentences: list[str], vocab_size: int = 2048) -> CLIPTokenizer:
    """A CLIPTokenizer whose vocabulary is all bytes, all bytes at a word's end, and merges up to `vocab_size`.

    The end token has the highest id, since CLIP and OWL-ViT pool the text at the largest id.
    """
    shape = CLIPTokenizer()._tokenizer
    learner = Tokenizer(tokenizer_models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = shape.normalizer
    learner.pre_tokenizer = shape.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(sentences, trainer)
    merges = _merges(learner)
    pieces = alphabet + [letter + "</w>" for letter in alphabet]
    pieces += ["".join(merge) for merge in merges]
    pieces = list(dict.fromkeys(pieces)) + ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges, model_max_length=TEXT_LENGTH
    )


def build_llama_tokenizer(sentences: list[str], vocab_size: int = 1024) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with begin, end and padding tokens, as Llama 3's is."""
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"]
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=specials[0], eos_token=specials[1], pad_token=specials[2]
    )


def _merges(learner: Tokenizer) -> list[tuple[str, str]]:
    import json

    model = json.loads(learner.to_str())["model"]
    return [tuple(merge) for merge in model["merges"]]


def load_clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer beside a checkpoint of CLIP's text encoder."""
    return CLIPTokenizer.from_pretrained(folder)
