"""Captions: a language model is asked for one caption a record and answers with a JSON object (paper S1)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from datagen.config import Dtype, Execution, StageConfig, derived_seed
from datagen.taxonomy import Request, Taxonomy
from shards.markers import Marker
from shards.memory import in_batches
from shards.stage import ShardPlan

CAPTIONS_VERSION = 2
MAX_CAPTION_CHARACTERS = 400
CUE = "JSON:\n"
FIELDS = ("subject", "class", "caption")


class ServerConfig(BaseModel):
    """Where vLLM runs, and how it is asked: nothing that a caption depends on."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    address: str | None = Field(default=None, description="of a running server, http://HOST:PORT; none starts one")
    python: str | None = Field(default=None, description="of the environment that holds vLLM; none takes this one's")
    arguments: tuple[str, ...] = Field(default=(), description="more arguments for a server that is started")
    start_seconds: float = Field(default=900, gt=0, description="how long a server may take to start")
    concurrency: int = Field(default=64, ge=1, description="requests under way at a time")
    timeout: float = Field(default=300, gt=0, description="seconds for one reply")
    retries: int = Field(default=6, ge=0, description="of a request, after 0.5, 1, 2, ... seconds, at most 30")


class CaptionsConfig(StageConfig):
    """How captions are written. `instruction` tells a general model what the short prompt means; "{format}" in it
    becomes a sentence about the reply's form.

    `reply` is that form: "json", an object for each caption; "schema", the same, enforced by vLLM token by token;
    "lines", a line for each caption, "SUBJECT | CLASS | CAPTION".
    """

    LOCATIONS: ClassVar[tuple[str, ...]] = ("model", "taxonomy")
    EXECUTION: ClassVar[tuple[str, ...]] = ("execution", "server")
    model: str
    taxonomy: str
    engine: Literal["transformers", "vllm"] = "transformers"
    reply: Literal["json", "schema", "lines"] = "json"
    captions_per_request: int = Field(default=1, ge=1, le=64)
    instruction: str = ""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    max_new_tokens: int = Field(default=128, ge=8, description="tokens for a caption")
    extra_share: float = Field(default=0.5, ge=0, le=1, description="share of requests that carry an extra")
    dtype: Dtype = "float32"
    execution: Execution = Execution(batch_size=32)
    server: ServerConfig = ServerConfig()

    @model_validator(mode="after")
    def _can_enforce_a_schema(self) -> Self:
        if self.reply == "schema" and self.engine != "vllm":
            raise ValueError(
                'reply "schema" needs engine "vllm": transformers does not enforce one; set reply to "json"'
            )
        return self

    def full_instruction(self) -> str:
        """The instruction with the sentence about the reply's form."""
        return self.instruction.replace("{format}", FORMATS["lines" if self.reply == "lines" else "json"])


FORMATS = {
    "json": 'Answer with one JSON object {"subject": ..., "class": ..., "caption": ...} for each: the subject\'s noun, '
    "its class, and the caption.",
    "lines": "Answer with one line for each, SUBJECT | CLASS | CAPTION: the subject's noun, its class, the caption.",
}


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
    return f"Subject: {subject}\nPlace: {place}\n{detail}{CUE}"


def render_request(requests: Sequence[Request], reply: str) -> str:
    """The prompt for several captions, numbered; for one, that of `render_prompt`, but for the last line of "lines"."""
    texts = [render_prompt(request.subject, request.place, request.extra).removesuffix(CUE) for request in requests]
    if len(texts) > 1:
        texts = [f"{number}.\n{text}" for number, text in enumerate(texts, 1)]
    return "".join(texts) + ("Lines:\n" if reply == "lines" else CUE)


def render_reply(caption: Caption) -> str:
    """The reply that the prompt asks for: `{"subject": ..., "class": ..., "caption": ...}`."""
    reply = {"subject": caption.subject, "class": caption.class_name, "caption": caption.caption}
    return json.dumps(reply, ensure_ascii=False)


def split_reply(text: str, count: int, reply: str) -> list[str]:
    """A reply cut into the texts of its `count` captions, in their order; what is missing is given the whole reply."""
    if count == 1:
        return [text]
    pieces = []
    if reply == "lines":
        pieces = _lines(text)
    else:
        start = text.find("{")
        while start >= 0 and len(pieces) < count:
            try:
                end = json.JSONDecoder().raw_decode(text, start)[1]
            except (ValueError, RecursionError):
                end = len(text)
            pieces.append(text[start:end])
            start = text.find("{", end)
    return pieces[:count] + [text] * (count - len(pieces))


def _lines(text: str) -> list[str]:
    """A reply's lines of captions: not the head of a table, which models begin with unasked, nor its bars."""
    lines = []
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("|"):  # a row of a table
            line = line.strip("| ")
        cells = [cell.strip().lower() for cell in line.split("|")]
        if len(cells) > 1 and cells != list(FIELDS) and any(map(str.isalpha, line)):
            lines.append(line)
    return lines


def parse_reply(text: str, reply: str = "json") -> Caption:
    """The caption in a model's reply, whatever prose stands around the JSON object or the line.

    Raises ValueError whose message is the reason, a short fixed phrase that rejects are counted by.
    """
    if not text.strip():
        raise ValueError("empty reply")
    if reply == "lines":
        line = next((line for line in _lines(text) if line.count("|") >= 2), None)
        if line is None:
            raise ValueError("no line of three parts")
        values: list[object] = list(line.split("|", 2))
        # Models number lines, or begin them as list items, unasked.
        values[0] = re.sub(r"^\W*(?:\d+[.):]\s*)?", "", str(values[0]))
    else:
        start = text.find("{")
        if start < 0:
            raise ValueError("no JSON object")
        try:
            content, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            raise ValueError("broken JSON") from None
        values = [content.get(name) for name in FIELDS]
    fields = []
    for name, value in zip(FIELDS, values, strict=True):
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


@contextmanager
def open_captioner(config: CaptionsConfig, log: Path) -> Iterator[Captioner]:
    """The language model that the settings name, for as long as this block; `log` is where a started server writes."""
    if config.engine == "transformers":
        from datagen.captions_transformers import TransformersCaptioner

        yield TransformersCaptioner(config)
    else:
        from datagen.captions_vllm import open_vllm

        with open_vllm(config, log) as captioner:
            yield captioner


def run(
    plan: ShardPlan,
    config: CaptionsConfig,
    taxonomy: Taxonomy,
    captioner: Captioner,
    execution: dict[str, Any],
    report: Callable[[int, int], None],
) -> Marker:
    """Write a shard of captions; a reply that cannot be used is rejected with what the model wrote.

    Key, request and seed of a record follow from the dataset's seed, the shard's number and the place in it; that seed,
    and how many captions there are, stand in the plan's settings. Records that are asked for together share the model's
    reply, sampled by the first one's seed. `execution` and `report` are as in `in_batches`.
    """
    dataset_seed, count = plan.spec.settings["seed"], plan.spec.settings["captions_per_shard"]
    together, asked = config.captions_per_request, []
    for position in range(count):
        key = f"{plan.index:05d}-{position:05d}"
        seed = derived_seed(dataset_seed, key)
        asked.append((key, seed, taxonomy.request(derived_seed(seed, "request"), config.extra_share)))
    groups = [asked[first : first + together] for first in range(0, count, together)]

    def write(batch: Sequence[Sequence[tuple[str, int, Request]]]) -> list[str]:
        prompts = [render_request([request for _, _, request in group], config.reply) for group in batch]
        return captioner.write(prompts, [derived_seed(group[0][1], "caption") for group in batch])

    def written(done: int, _: int) -> None:
        report(min(done * together, count), count)

    with plan.writing(execution, records_in=count) as out:
        for batch, replies in in_batches(groups, execution, write, written):
            for group, reply in zip(batch, replies, strict=True):
                texts = split_reply(reply, len(group), config.reply)
                for (key, seed, request), raw in zip(group, texts, strict=True):
                    record: dict[str, Any] = {"key": key, "seed": seed, "class": request.class_name}
                    record |= {"place": request.place, "raw": raw, "models": {"captions": plan.spec.models["model"]}}
                    try:
                        out.add(record | _asked_for(request, parse_reply(raw, config.reply)))
                    except ValueError as error:
                        out.reject(record, str(error))
    return out.marker


def _asked_for(request: Request, caption: Caption) -> dict[str, str]:
    if caption.class_name != request.class_name.lower() and not names_subject(caption.subject, request.subject):
        raise ValueError("another subject than asked for")
    return {"subject": caption.subject, "caption": caption.caption}
