"""The miniature's caption model: a small Llama that answers the caption stage's prompt in its own format."""

import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from datagen.captions import Caption, render_prompt, render_reply
from dreamcache.processes import process_rank
from miniature.train.examples import sample_request
from miniature.train.loop import fit
from miniature.train.tokenizers import build_llama_tokenizer
from miniature.train.workspace import Workspace

STEPS = 1500
BATCH = 64
TOKENIZER_EXAMPLES = 6000


def build(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def sample_example(rng: np.random.Generator) -> tuple[str, str]:
    """A prompt of the caption stage and a reply to it, drawn from the grammar."""
    request = sample_request(rng)
    reply = Caption(request.subject, request.subject, request.caption)
    return render_prompt(request.subject, request.place, request.extra), render_reply(reply)


def batch_of(tokenizer: PreTrainedTokenizerFast, examples: list[tuple[str, str]]) -> dict[str, Tensor]:
    """Prompts with their replies as a Llama's arguments, (B, length) each; only replies are learned."""
    rows, answered = [], []
    for prompt, reply in examples:
        before = [tokenizer.bos_token_id, *tokenizer.encode(prompt, add_special_tokens=False)]
        after = [*tokenizer.encode(reply, add_special_tokens=False), tokenizer.eos_token_id]
        rows.append(before + after)
        answered.append([-100] * len(before) + after)
    length = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows]),
        "labels": torch.tensor([row + [-100] * (length - len(row)) for row in answered]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
    }


def train(workspace: Workspace) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    tokenizer = build_llama_tokenizer(["".join(sample_example(rng)) for _ in range(TOKENIZER_EXAMPLES)])
    llama = workspace.beginning("llama", build(tokenizer))

    def loss_at(step: int, _generator: torch.Generator) -> Tensor:
        rng = np.random.default_rng([1, step, process_rank()])
        batch = batch_of(tokenizer, [sample_example(rng) for _ in range(BATCH)])
        return llama(**{name: tensor.to(workspace.device) for name, tensor in batch.items()}).loss

    def save(average: nn.Module) -> None:
        finished = copy.deepcopy(average)
        assert isinstance(finished, LlamaForCausalLM)

        def write(folder: Path) -> None:
            finished.half().save_pretrained(folder)
            tokenizer.save_pretrained(folder)

        workspace.publish("llama", write)

    fit(
        "llama",
        llama,
        loss_at,
        steps=workspace.steps or STEPS,
        learning_rate=2e-3,
        state_folder=workspace.states,
        save=save,
        ema_decay=0.99,
    )
