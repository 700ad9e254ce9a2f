"""What the Prefect UI shows of a run: progress with rate and time left, tables of accounts, pictures."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx
from PIL.Image import Image
from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from datagen.estimate import duration
from flows.charts import WIDTH
from flows.pictures import contact_sheet, data_uri
from flows.progress import rate_and_time_left

log = logging.getLogger("flows")

EVERY = 10.0  # seconds between two lines of progress

CHART_STYLE = (
    "svg { background: #fff } text { fill: #555; font: 12px system-ui, sans-serif } .grid { stroke: #ddd }"
    " polyline { fill: none; stroke-width: 2; stroke: #999 } .pale { stroke: #bcc; stroke-width: 1 }"
    " polyline.accent, polyline.right { stroke: #0b7a75 } polyline.wrong { stroke: #b3541e }"
)


class Progress:
    """A progress artifact and plain log lines for work of known length, both every few seconds at most."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self.name, self.total, self.unit = name, max(total, 1), unit
        self._first: tuple[int, float] | None = None
        self._done = 0
        self._artifact: Any = None

    def __enter__(self) -> Self:
        self._begun = self._last = time.monotonic()
        self._show(0.0, f"{self.name}: 0 of {self.total} {self.unit}")
        return self

    def _show(self, progress: float, text: str) -> None:
        """Create or update the artifact; a server that does not answer stops no work, and hides no error of it."""
        try:
            if self._artifact is None:
                self._artifact = create_progress_artifact(progress=progress, description=text)
            else:
                update_progress_artifact(self._artifact, progress=progress, description=text)
        except httpx.HTTPError as error:
            log.warning("progress is not shown: %s", error)

    def at(self, done: int, note: str = "") -> None:
        """Say how much is done; rate and time left count from the first call, since resumed work was done before."""
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)
        self._done = done
        if now - self._last < EVERY or done >= self.total:
            return  # the end is told by whoever did the work, with its accounts
        self._last = now
        text = f"{self.name}: {done} of {self.total} {self.unit}{rate_and_time_left(done, self.total, self._first)}"
        text += f", {note}" if note else ""
        log.info(text)
        self._show(100.0 * done / self.total, text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        took = duration(time.monotonic() - self._begun)
        if kind is None:
            text, progress = f"{self.name}: {self.total} {self.unit} in {took}", 100.0
        else:  # a stale estimate of the time left would stand there for ever
            text, progress = f"{self.name}: broken off after {took}", 100.0 * self._done / self.total
        self._show(progress, text)


def artifact_key(name: str) -> str:
    """A name in the alphabet of artifact keys: lower case letters, digits and dashes."""
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")


def table_artifact(name: str, description: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table of rows with the same columns."""
    create_table_artifact(key=artifact_key(name), table=[dict(row) for row in rows], description=description)


def link_artifact(name: str, description: str, address: str) -> None:
    """A link, under the words that describe it."""
    create_link_artifact(link=address, link_text=description, key=artifact_key(name), description=description)


def accounts_artifact(name: str, accounts: Mapping[str, Mapping[str, Any]]) -> None:
    """Records in, out and rejected of each stage (`stage_accounts`), and the rejects by reason, as markdown tables."""
    lines = ["| stage | in | out | rejected |", "|---|---:|---:|---:|"]
    lines += [f"| {stage} | {row['in']} | {row['out']} | {row['in'] - row['out']} |" for stage, row in accounts.items()]
    reasons = [
        f"| {stage} | {reason} | {count} |"
        for stage, row in accounts.items()
        for reason, count in row["rejected"].items()
    ]
    if reasons:
        lines += ["", "| stage | rejected for | records |", "|---|---|---:|", *reasons]
    create_markdown_artifact(key=artifact_key(name), markdown="\n".join(lines), description="Records stage by stage")


def chart_artifact(name: str, description: str, chart: str) -> None:
    """A chart of flows/charts.py, "" for none, as a picture: the SVG brings its style along, and is always light."""
    if chart:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH}"'
        svg = chart.replace("<svg", head, 1).replace(">", f"><style>{CHART_STYLE}</style>", 1)
        address = f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
        create_image_artifact(image_url=address, key=artifact_key(name), description=description)


def pictures_artifact(name: str, description: str, images: Sequence[Image], columns: int, side: int = 160) -> None:
    """Pictures side by side as one image, inside the artifact as a data URI: it shows without any file server."""
    if images:
        sheet = contact_sheet(images, columns, side)
        create_image_artifact(
            image_url=data_uri(sheet, max(sheet.size)), key=artifact_key(name), description=description
        )
