"""Captions: a language model is asked for one caption a record and answers with a JSON object (paper S1)."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass

CAPTIONS_VERSION = 1
MAX_CAPTION_CHARACTERS = 400


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
