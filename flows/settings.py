"""Dotted settings, `images.guidance_scale=5.0`, laid over a profile; wrong names answer with the nearest right ones."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


def parse_settings(texts: Iterable[str]) -> dict[str, Any]:
    """`NAME=VALUE` texts as a mapping; a value is JSON where it parses as such (5.0, true, null, [1]), else a string.

    Raises ValueError for a text without "=".
    """
    settings = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"setting {text!r} is not of the form name=value, such as images.guidance_scale=5.0")
        try:
            settings[name.strip()] = json.loads(value)
        except ValueError:
            settings[name.strip()] = value
    return settings


def setting_text(name: str, value: Any) -> str:
    """The `NAME=VALUE` that `parse_settings` reads as this very value; a string is bare where it stays one."""
    text = f"{name}={value}"
    return text if parse_settings([text])[name] == value else f"{name}={json.dumps(value)}"


def with_settings(model: Model, settings: Mapping[str, Any]) -> Model:
    """A copy of a configuration with dotted settings changed, validated as a whole.

    Raises ValueError, in one line, for a name that does not exist (with the nearest that do) or a value that does not
    fit.
    """
    data = model.model_dump(exclude_unset=False)
    names = list(setting_names(model))
    for name, value in settings.items():
        *parents, last = name.split(".")
        place: Any = data
        for part in parents:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict) or last not in place:
            raise ValueError(f"there is no setting {name}{_nearest(name, names)}")
        place[last] = _laid_over(place[last], value)
    try:
        return type(model).model_validate(data)
    except ValidationError as error:
        raise ValueError(one_line(error)) from None


def _laid_over(before: Any, value: Any) -> Any:
    """A new value; of a group of settings, those that it does not name stay."""
    if not (isinstance(before, dict) and isinstance(value, Mapping)):
        return value
    return {**before, **{name: _laid_over(before.get(name), one) for name, one in value.items()}}


def setting_names(model: BaseModel, prefix: str = "") -> Iterable[str]:
    """The dotted names of all settings of a configuration, innermost ones only."""
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield from setting_names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def one_line(error: ValidationError) -> str:
    """A validation error as `name: what is wrong (got VALUE)`, one line for all of them."""
    parts = []
    for item in error.errors():
        name, text = ".".join(map(str, item["loc"])) or "settings", item["msg"]
        parts.append(f"{name}: {text[0].lower()}{text[1:]} (got {item['input']!r:.60})")
    return "; ".join(parts)


def nearest_of(name: str, names: Iterable[str]) -> str:
    """`; did you mean A or B?` with the names that look like `name`, or all of them where none does."""
    names = list(names)
    return _nearest(name, names) or f"; there are {', '.join(names)}"


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.8)
    near = near or difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    near = near or [full for full in names if full.rpartition(".")[2] == name.rpartition(".")[2]][:3]
    return f"; did you mean {' or '.join(near)}?" if near else ""
