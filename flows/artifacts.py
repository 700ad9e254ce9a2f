"""What the Prefect UI shows of a run: progress with rate and time left, tables of accounts, pictures."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from PIL.Image import Image
from prefect.artifacts import (
    create_image_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.pictures import contact_sheet, data_uri
from shards.markers import Marker

log = logging.getLogger("flows")


class Progress:
    """A progress artifact and plain log lines for work of known length, both every few seconds at most."""

    def __init__(self, name: str, total: int, unit: str, every: float = 10.0) -> None:
        self.name, self.total, self.unit, self.every = name, max(total, 1), unit, every
        self._first: tuple[int, float] | None = None
        self._last = 0.0

    def __enter__(self) -> Self:
        self._last = time.monotonic()
        text = f"{self.name}: 0 of {self.total} {self.unit}"
        self._artifact = create_progress_artifact(progress=0.0, description=text)
        return self

    def at(self, done: int, note: str = "") -> None:
        """Say how much is done; rate and time left count from the first call, since resumed work was done before."""
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        if now - self._last < self.every or done >= self.total:
            return  # the end is told by whoever did the work, with its accounts
        self._last = now
        start, since = self._first
        rate = (done - start) / (now - since) if now > since and done > start else 0.0
        text = f"{self.name}: {done} of {self.total} {self.unit}"
        if rate:
            text += f", {rate:.2f} a second, {(self.total - done) / rate:.0f} s left"
        text += f", {note}" if note else ""
        log.info(text)
        update_progress_artifact(self._artifact, progress=100.0 * done / self.total, description=text)  # type: ignore[arg-type]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            update_progress_artifact(self._artifact, progress=100.0)  # type: ignore[arg-type]


def artifact_key(name: str) -> str:
    """A name in the alphabet of artifact keys: lower case letters, digits and dashes."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")


def table_artifact(name: str, description: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows with the same columns."""
    create_table_artifact(key=artifact_key(name), table=[dict(row) for row in rows], description=description)


def accounts_artifact(name: str, markers: Mapping[str, Sequence[Marker]]) -> None:
    """Records in, out and rejected by reason of each stage, as a markdown table."""
    lines = ["| stage | in | out | rejected | reasons |", "|---|---:|---:|---:|---|"]
    for stage, found in markers.items():
        total_in, total_out = sum(m.records_in for m in found), sum(m.records_out for m in found)
        reasons: dict[str, int] = {}
        for marker in found:
            for reason, count in marker.rejected.items():
                reasons[reason] = reasons.get(reason, 0) + count
        listed = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1]))
        lines.append(f"| {stage} | {total_in} | {total_out} | {total_in - total_out} | {listed} |")
    create_markdown_artifact(key=artifact_key(name), markdown="\n".join(lines), description="Records stage by stage")


def pictures_artifact(name: str, description: str, images: Sequence[Image], columns: int, side: int = 160) -> None:
    """Pictures side by side as one image, inside the artifact as a data URI: it shows without any file server."""
    if images:
        sheet = contact_sheet(images, columns, side)
        create_image_artifact(
            image_url=data_uri(sheet, max(sheet.size)), key=artifact_key(name), description=description
        )
