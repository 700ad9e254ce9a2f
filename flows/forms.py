"""The form of a flow's settings in Prefect's UI: every dotted setting with its type, meaning and defaults."""

from __future__ import annotations

import json
from typing import Annotated, Any

from flows.profiles import PROFILES, Profile, miniature_checkpoints


class _Form:
    """A mapping's schema that lists all settings; names that it lacks are left to `load_profile`.

    No default is a default of the form, which would send what is not changed along, and for the wrong profile:
    descriptions say them.
    """

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "object", "properties": _settings(), "additionalProperties": True}


def _settings() -> dict[str, Any]:
    whole = Profile.model_json_schema()
    shipped = {name: make().model_dump(mode="json") for name, make in PROFILES.items()}
    found: dict[str, Any] = {}

    def collect(model: dict[str, Any], path: tuple[str, ...]) -> None:
        for name, field in model["properties"].items():
            here = (*path, name)
            if "$ref" in field:
                collect(_definition(whole, field), here)
            elif here != ("name",):
                dotted = ".".join(here).removeprefix("dataset.")
                text = "; ".join(filter(None, (field.get("description"), _defaults(shipped, here))))
                rest = {key: value for key, value in field.items() if key != "default"}
                choices = [_definition(whole, one) if "$ref" in one else one for one in field.get("anyOf", ())]
                found[dotted] = rest | {"title": dotted, "description": text} | ({"anyOf": choices} if choices else {})

    collect(whole, ())
    return found


def _definition(whole: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    return dict(whole["$defs"][field["$ref"].rpartition("/")[2]])


def _defaults(shipped: dict[str, Any], path: tuple[str, ...]) -> str:
    """`default 3.5`, or where the profiles differ `miniature 20, full 25`."""
    texts = {}
    for profile, value in shipped.items():
        for name in path:
            value = value[name]
        text = json.dumps(value).replace(f"{miniature_checkpoints().parent}/", "")  # whichever machine deploys
        short = f"{len(value)} entries" if isinstance(value, list) else f"{text[:57]}..."
        texts[profile] = text if len(text) <= 60 else short
    if len(set(texts.values())) == 1:
        return f"default {next(iter(texts.values()))}"
    return ", ".join(f"{profile} {text}" for profile, text in texts.items())


Settings = Annotated[dict[str, Any] | None, _Form()]
UNCHANGED: dict[str, Any] = {}  # the form begins with the default, and null is no object
