"""Captions: a language model is asked for one caption a record and answers with a JSON object (paper S1)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from datagen.config import Dtype, Execution, StageConfig, derived_seed, torch_device
from datagen.identity import pinned
from datagen.taxonomy import Request, Taxonomy
from shards.markers import Marker
from shards.stage import ShardPlan

CAPTIONS_VERSION = 1
MAX_CAPTION_CHARACTERS = 400


class CaptionsConfig(StageConfig):
    """How captions are written. `instruction` tells a general model what the short prompt means."""

    LOCATIONS: ClassVar[tuple[str, ...]] = ("model", "taxonomy")
    model: str
    taxonomy: str
    engine: Literal["transformers"] = "transformers"
    instruction: str = ""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_new_tokens: int = Field(default=128, ge=8)
    extra_share: float = Field(default=0.5, ge=0, le=1, description="share of requests that carry an extra")
    dtype: Dtype = "float32"
    execution: Execution = Execution(batch_size=32)


@dataclass(frozen=True)
class Caption:
    """A parsed reply: the noun as the caption has it, its class, and the caption."""

    subject: str
    class_name: str
    caption: str


def render_prompt(subject: str, place: str, extra: str | None = None) -> str:
    """The request as the model reads it, "Subject: teapot / Place: on a beach / Detail: at sunset / JSON:" on lines.

    The reply is one JSON object, see `render_reply`. Short, since a small model reads it once a caption; what a large
    model needs to be told besides is `CaptionsConfig.instruction`.
    """
    detail = f"Detail: {extra}\n" if extra else ""
    return f"Subject: {subject}\nPlace: {place}\n{detail}JSON:\n"


def render_reply(caption: Caption) -> str:
    """The reply that the prompt asks for: `{"subject": ..., "class": ..., "caption": ...}`."""
    reply = {"subject": caption.subject, "class": caption.class_name, "caption": caption.caption}
    return json.dumps(reply, ensure_ascii=False)


def parse_reply(text: str) -> Caption:
    """The caption in a model's reply, whatever prose stands around the JSON object.

    Raises ValueError whose message is the reason, a short fixed phrase that rejects are counted by.
    """
    start = text.find("{")
    if start < 0:
        raise ValueError("no JSON object" if text.strip() else "empty reply")
    try:
        reply, _ = json.JSONDecoder().raw_decode(text[start:])
    except (ValueError, RecursionError):
        raise ValueError("broken JSON") from None
    fields = []
    for name in ("subject", "class", "caption"):
        value = reply.get(name)
        if not isinstance(value, str):
            raise ValueError(f"no {name}")
        value = " ".join(value.split())
        if not value:
            raise ValueError(f"empty {name}")
        # Control characters, lone surrogates and unassigned code points are no text for a tokenizer or a caption file.
        if any(unicodedata.category(character) in ("Cc", "Cs", "Cn") for character in value):
            raise ValueError("characters that are not text")
        fields.append(value)
    subject, class_name, caption = fields[0].lower(), fields[1].lower(), fields[2]
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise ValueError("caption too long")
    if not names_subject(caption, subject):
        raise ValueError("subject not in caption")
    return Caption(subject, class_name, caption)


def names_subject(caption: str, subject: str) -> bool:
    """Whether the words of `subject` stand side by side in `caption`, in the singular or with a plural ending."""
    words = r"\W+".join(re.escape(word) for word in re.findall(r"\w+", subject.lower()))
    return bool(words) and re.search(rf"(?<!\w){words}(?:s|es)?(?!\w)", caption.lower()) is not None


class Captioner(Protocol):
    """What the stage needs of a language model: for each prompt the model's raw reply, sampled by the prompt's seed."""

    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Replies in the order of the prompts."""


def run(
    plan: ShardPlan,
    config: CaptionsConfig,
    taxonomy: Taxonomy,
    dataset_seed: int,
    count: int,
    captioner: Captioner,
    report: Callable[[int, int], None],
) -> Marker:
    """Write a shard of `count` captions; a reply that cannot be used is rejected with what the model wrote.

    Key, request and seed of a record follow from the dataset's seed, the shard's number and the place in it.
    """
    keys = [f"{plan.index:05d}-{position:05d}" for position in range(count)]
    with plan.writing(config.execution.model_dump(), records_in=count) as out:
        for start in range(0, count, config.execution.batch_size):
            batch = keys[start : start + config.execution.batch_size]
            seeds = [derived_seed(dataset_seed, key) for key in batch]
            requests = [taxonomy.request(derived_seed(seed, "request"), config.extra_share) for seed in seeds]
            prompts = [render_prompt(request.subject, request.place, request.extra) for request in requests]
            replies = captioner.write(prompts, [derived_seed(seed, "caption") for seed in seeds])
            for key, seed, request, raw in zip(batch, seeds, requests, replies, strict=True):
                record: dict[str, Any] = {"key": key, "seed": seed, "class": request.class_name, "place": request.place}
                record |= {"raw": raw, "models": {"captions": plan.spec.models["model"]}}
                try:
                    out.add(record | _asked_for(request, parse_reply(raw)))
                except ValueError as error:
                    out.reject(record, str(error))
            report(start + len(batch), count)
    assert out.marker is not None
    return out.marker


def _asked_for(request: Request, caption: Caption) -> dict[str, str]:
    if caption.class_name != request.class_name.lower() and not names_subject(caption.subject, request.subject):
        raise ValueError("another subject than asked for")
    return {"subject": caption.subject, "caption": caption.caption}


class TransformersCaptioner:
    """A causal language model run by transformers, one random stream a record.

    Sampling is an argmax over logits with Gumbel noise from the record's own generator, so a reply does not depend on
    which other prompts share its batch, beyond rounding in the padded arithmetic.
    """

    def __init__(self, config: CaptionsConfig) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.config = config
        self.device = torch_device(config.execution)
        self.tokenizer = AutoTokenizer.from_pretrained(config.model, **pinned(config.model), padding_side="left")
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(
            config.model, **pinned(config.model), use_safetensors=True, dtype=config.dtype
        )
        self.model = model.to(self.device).eval()

    def write(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Replies in the order of the prompts."""
        import torch
        from transformers import GenerationConfig, LogitsProcessorList

        chat = self.tokenizer.chat_template is not None
        texts = [self._chat(prompt) if chat else self._plain(prompt) for prompt in prompts]
        inputs = self.tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
        generation = GenerationConfig(
            max_new_tokens=self.config.max_new_tokens,
            do_sample=False,
            eos_token_id=self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
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
        return list(self.tokenizer.batch_decode(written, skip_special_tokens=True))

    def _plain(self, prompt: str) -> str:
        # The begin token stands in the text as it does in chat templates: not every tokenizer adds it by itself.
        return f"{self.tokenizer.bos_token or ''}{self.config.instruction}{prompt}"

    def _chat(self, prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        if self.config.instruction:
            messages.insert(0, {"role": "system", "content": self.config.instruction})
        # Llama's template writes today's date into the prompt unless it is given one.
        return str(
            self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, date_string="26 Jul 2024"
            )
        )

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
