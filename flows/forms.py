"""Every dotted setting with its meaning: as the form of a flow in Prefect's UI, and as `dreamcache settings`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from flows.profiles import PROFILES, Profile, miniature_checkpoints


class _Form:
    """A mapping's schema that lists all settings; names that it lacks are left to `load_profile`.

    No default is a default of the form, which would send what is not changed along, and for the wrong profile:
    descriptions say them.
    """

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "object", "properties": _form(), "additionalProperties": True}


def described_settings(profile: Profile) -> dict[str, tuple[Any, str]]:
    """Dotted name -> a profile's value, as plain JSON values, and what the setting means, "" where its name says it."""
    values = profile.model_dump(mode="json")
    fields = _fields(Profile.model_json_schema())
    return {_dotted(path): (_value(values, path), field.get("description", "")) for path, field in fields}


def _form() -> dict[str, Any]:
    whole = Profile.model_json_schema()
    shipped = {name: make().model_dump(mode="json") for name, make in PROFILES.items()}
    found: dict[str, Any] = {}
    for path, field in _fields(whole):
        text = "; ".join(filter(None, (field.get("description"), _defaults(shipped, path))))
        rest = {key: value for key, value in field.items() if key != "default"}
        choices = [_definition(whole, one) if "$ref" in one else one for one in field.get("anyOf", ())]
        dotted = _dotted(path)
        found[dotted] = rest | {"title": dotted, "description": text} | ({"anyOf": choices} if choices else {})
    return found


def _fields(whole: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The path and the schema of each setting of a profile, innermost ones only."""

    def collect(model: dict[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        for name, field in model["properties"].items():
            if "$ref" in field:
                yield from collect(_definition(whole, field), (*path, name))
            elif (here := (*path, name)) != ("name",):
                yield here, field

    yield from collect(whole, ())


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(path).removeprefix("dataset.")


def _value(values: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        values = values[name]
    return values


def _definition(whole: dict[str, Any], field: dict[str, Any]) -> dict[str, Any]:
    return dict(whole["$defs"][field["$ref"].rpartition("/")[2]])


def _defaults(shipped: dict[str, Any], path: tuple[str, ...]) -> str:
    """`default 3.5`, or where the profiles differ `miniature 20, full 25`."""
    texts = {}
    for profile, values in shipped.items():
        value = _value(values, path)
        text = json.dumps(value).replace(f"{miniature_checkpoints().parent}/", "")  # whichever machine deploys
        short = f"{len(value)} entries" if isinstance(value, list) else f"{text[:57]}..."
        texts[profile] = text if len(text) <= 60 else short
    if len(set(texts.values())) == 1:
        return f"default {next(iter(texts.values()))}"
    return ", ".join(f"{profile} {text}" for profile, text in texts.items())


Settings = Annotated[dict[str, Any] | None, _Form()]
UNCHANGED: dict[str, Any] = {}  # the form begins with the default, and null is no object
