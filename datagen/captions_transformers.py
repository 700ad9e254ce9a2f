"""Captions by a language model that transformers runs in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datagen.captions import CaptionsConfig
from datagen.config import torch_device
from datagen.identity import loading


class PromptTokenizer:
    """Prompts as the language model reads them: its chat template if it has one, the instruction before each."""

    def __init__(self, config: CaptionsConfig) -> None:
        from transformers import AutoTokenizer

        self.instruction = config.full_instruction()
        with loading(config.model, "captions.model") as pinned:
            self.tokenizer = AutoTokenizer.from_pretrained(config.model, **pinned, padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def text(self, prompt: str) -> str:
        """The whole text of a prompt, its begin token spelled out."""
        if self.tokenizer.chat_template is None:
            # The begin token stands in the text as it does in chat templates: not every tokenizer adds it by itself.
            return f"{self.tokenizer.bos_token or ''}{self.instruction}{prompt}"
        messages = [{"role": "user", "content": prompt}]
        if self.instruction:
            messages.insert(0, {"role": "system", "content": self.instruction})
        # Llama's template writes today's date into the prompt unless it is given one.
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
            )
        )

    def tokens(self, prompt: str) -> list[int]:
        """The token ids of a prompt's text."""
        return [int(token) for token in self.tokenizer.encode(self.text(prompt), add_special_tokens=False)]


class TransformersCaptioner:
    """A causal language model run by transformers, one random stream a record.

    Sampling is an argmax over logits with Gumbel noise from the record's own generator, so a reply does not depend on
    which other prompts share its batch, beyond rounding in the padded arithmetic.
    """

    def __init__(self, config: CaptionsConfig) -> None:
        from transformers import AutoModelForCausalLM

        self.config = config
        self.device = torch_device(config.execution)
        self.prompts = PromptTokenizer(config)
        with loading(config.model, "captions.model") as pinned:
            model = AutoModelForCausalLM.from_pretrained(
                config.model, **pinned, use_safetensors=True, dtype=config.dtype
            )
        self.model = model.to(self.device).eval()

    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Replies in the order of the prompts."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        tokenizer = self.prompts.tokenizer
        inputs = tokenizer(
            [self.prompts.text(prompt) for prompt in prompts],
            return_tensors="pt",
            padding=True,
            add_special_tokens=False,
        )
        generation = GenerationConfig(
            max_new_tokens=self.config.max_new_tokens * self.config.captions_per_request,
            do_sample=False,
            eos_token_id=self.model.generation_config.eos_token_id or tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = LogitsProcessorList([lambda _, logits: self._perturbed(logits, generators)])
        with torch.inference_mode():
            tokens = self.model.generate(
                input_ids=inputs["input_ids"].to(self.device),
                attention_mask=inputs["attention_mask"].to(self.device),
                generation_config=generation,
                logits_processor=noise,
            )
        written = tokens[:, inputs["input_ids"].shape[1] :]
        return list(tokenizer.batch_decode(written, skip_special_tokens=True))

    def _perturbed(self, logits: Any, generators: list[Any]) -> Any:
        """Logits (B, V) at the set temperature with the tail beyond top_p removed, plus Gumbel noise row by row."""
        import torch

        logits = logits.float() / self.config.temperature
        if self.config.top_p < 1:
            ordered, places = logits.sort(dim=-1, descending=True)
            probabilities = ordered.softmax(dim=-1)
            beyond = probabilities.cumsum(dim=-1) - probabilities >= self.config.top_p
            logits = logits.masked_fill(beyond.scatter(-1, places, beyond), -torch.inf)
        uniform = torch.stack([torch.rand(logits.shape[-1], generator=generator) for generator in generators])
        # Kept off 0 and 1, where the double logarithm has no value.
        uniform = uniform.clamp(1e-10, 1 - 1e-7)
        return logits - (-uniform.log()).log().to(logits.device)
