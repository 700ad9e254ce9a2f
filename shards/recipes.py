"""Recipes, the nested settings and checksums that a marker's digest is of, and what differs between two."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any


def recipe_changes(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any], unfinished: Collection[str] = ()
) -> list[str]:
    """The fields in which two recipes differ, as lines `training.steps: 200 -> 400`, unfinished inputs left out."""
    old, new = ({"copies": 1} | _flat(recipe) for recipe in (before, after))  # recipes name no single copy
    lines = []
    for field in sorted(old.keys() | new.keys()):
        if old.get(field) == new.get(field) or field.removeprefix("inputs.") in unfinished:
            continue
        label = field.removeprefix("settings.")
        lines.append(f"{name}.{label}: {_short(field, old.get(field))} -> {_short(field, new.get(field))}")
    return lines


def _flat(recipe: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in recipe.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(field: str, value: Any) -> str:
    if value is None:
        return "none"
    if field.startswith(("inputs.", "models.")):  # checksums, mostly
        return re.sub(r"(?<=sha256:)(\w{5})\w+|\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1\2", str(value))
    return json.dumps(value)
