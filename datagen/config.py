"""What the stages' configurations share: content settings apart from execution settings, and seeds of records."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Dtype = Literal["float32", "float16", "bfloat16"]


class Execution(BaseModel):
    """How a stage runs, recorded but never a reason to run it again. `device` "auto" is the GPU if there is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    device: str = "auto"
    batch_size: int = Field(default=8, ge=1, description="records at a time; fewer where a GPU's memory does not hold")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of the models; none leaves torch's choice")


class StageConfig(BaseModel):
    """A stage's settings. Every field decides its output, except those of `EXECUTION` and the models' `LOCATIONS`: a
    model is known by its weights' identity, wherever they lie."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    LOCATIONS: ClassVar[tuple[str, ...]] = ()
    EXECUTION: ClassVar[tuple[str, ...]] = ("execution",)

    @model_validator(mode="before")
    @classmethod
    def _from_home(cls, values: object) -> object:
        """Locations that begin with "~", which no library that loads models expands."""
        if not isinstance(values, Mapping):
            return values
        own = {name: values[name] for name in cls.LOCATIONS if isinstance(values.get(name), str)}
        return {**values, **{name: os.path.expanduser(location) for name, location in own.items()}}

    @field_validator("execution", mode="before", check_fields=False)
    @classmethod
    def _of_any_stage(cls, value: object) -> object:
        return value.model_dump() if isinstance(value, Execution) else value

    def content(self) -> dict[str, Any]:
        """The settings that belong in a digest, as plain JSON values."""
        return self.model_dump(mode="json", exclude={*self.EXECUTION, *self.LOCATIONS})

    def locations(self) -> dict[str, str]:
        """Role -> folder or Hub name of the models that are set."""
        return {role: location for role in self.LOCATIONS if (location := getattr(self, role)) is not None}


def derived_seed(*parts: int | str) -> int:
    """A seed of 53 bits, exact in every JSON reader, from the dataset's seed and names such as a record's key."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 11


def torch_device(execution: Execution) -> Any:
    """The torch device of an execution, after setting the number of CPU threads that it asks for."""
    import torch

    if execution.threads is not None:
        torch.set_num_threads(execution.threads)
    if execution.device != "auto":
        return torch.device(execution.device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: Any, dtype: Dtype) -> Any:
    """A context in which torch computes in `dtype` what stands it, and the rest in float32."""
    import torch

    return torch.autocast(device.type, dtype=getattr(torch, dtype), enabled=dtype != "float32")
