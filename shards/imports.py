"""Other datasets as ours: the authors' folders, pairs of images side by side, and triplet shards without markers."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from shards.export import DESCRIPTION
from shards.files import KEY_PATTERN, copy_keys
from shards.markers import MARKER_SUFFIX, checked_marker, rejects_path
from shards.run_folder import imported_stage, origin
from shards.sources import SourceFile, decoded_image, source_files
from shards.stage import ShardWriter, StageSpec, plan_shard
from shards.triplets import IMAGE, MASK, RECORD

if TYPE_CHECKING:
    from PIL.Image import Image

Layout = Literal["authors", "pairs", "triplets"]
# How a file's name says which record it is a part of, and which part.
PARTS = {
    "authors": r"(?P<record>.+)_(?P<part>generation\.png|caption\.txt|mask\.png)",
    "pairs": r"(?P<record>[^.]+)\.(?P<part>png|jpg|jpeg|webp|json)",
    "triplets": r"(?P<record>[^.]+)\.(?P<part>jpg|mask\.png|json)",
}
IMPORT_VERSION = 2
MAX_CAPTION_CHARACTERS = 2000


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of another dataset: its key here, its name there, its files by part, and why it cannot be taken."""

    key: str
    name: str
    files: dict[str, SourceFile]
    fault: str | None = None

    def read(self, part: str) -> bytes:
        """A part's bytes; ValueError with the reason where it is missing or too large."""
        if part not in self.files:
            raise ValueError(f"no {part}")
        return self.files[part].read()


def exported_shards(source: Path) -> list[Path]:
    """The shards in a folder that `export_dataset` wrote, in order; none where it holds anything else."""
    names = {path.name for path in source.iterdir()} if source.is_dir() else set()
    shards = {name for name in names if re.fullmatch(r"\d{5}\.tar", name)}
    return [source / name for name in sorted(shards)] if names - shards == set(DESCRIPTION) else []


def list_entries(sources: Sequence[Path], layout: Layout) -> list[Entry]:
    """The records of folders and tars, in the order of the sources and names; raises as `source_files`, and
    ValueError for a source that is given twice.

    A key is made from the name in lower case, "/" and spaces as "-" and "_". A file that is no part of a record is an
    entry with a fault, as is a name that gives no key or another's; hidden files are passed over.
    """
    entries, taken, seen = [], set(), set()
    for number, source in enumerate(sources):
        if source.resolve() in seen:
            raise ValueError(f"{source} was given twice")
        seen.add(source.resolve())
        found: dict[str, dict[str, SourceFile]] = {}
        for name, file in source_files(source).items():
            if any(part.startswith(".") for part in name.split("/")):
                continue
            match = re.fullmatch(PARTS[layout], name)
            found.setdefault(match["record"] if match else name, {})[match["part"] if match else ""] = file
        for name, files in found.items():
            key = name.lower().replace("/", "-").replace(" ", "_")
            fault = None
            if "" in files:
                fault = "no part of the layout"
            elif not KEY_PATTERN.fullmatch(key) or len(key) > 77:  # an image of a pair adds three characters
                fault = "name unfit for a key"
            elif key in taken:
                fault = "key of an earlier record"
            if fault is not None:
                key = f"refused-{hashlib.sha256(f'{number}/{name}'.encode(errors='replace')).hexdigest()[:24]}"
            taken.add(key)
            entries.append(Entry(key, name, files, fault))
    return entries


def import_shards(
    sources: Sequence[Path], layout: Layout, run: Path, records_a_shard: int, report: Callable[[int, int], None]
) -> list[Path]:
    """Bring another dataset into a run folder of its own; returns the shards, those that are up to date left as are.

    "authors" and "triplets", files or an exported folder, become triplets. "pairs" become images, two a pair, for the
    stages that cut out subjects. What cannot be taken is rejected under a reason. Raises ValueError for hostile
    sources, one that is given twice, and those of which nothing can be taken; and for a folder whose dataset was built,
    merged, or imported as images where these are triplets, or the other way.
    """
    if (how := origin(run)) not in (None, "imported"):
        raise ValueError(f"{run} holds a dataset that was {how} there: import into a folder of its own")
    stage = "images" if layout == "pairs" else "triplets"
    if (earlier := imported_stage(run)) not in (None, stage):
        raise ValueError(f"{run} holds {earlier} that were imported in another layout: import into a folder of its own")
    if layout == "triplets":
        sources = [shard for source in sources for shard in exported_shards(source) or [source]]
    entries = list_entries(sources, layout)
    if not entries:
        raise ValueError(f"{', '.join(map(str, sources))}: there is nothing of the layout {layout}")
    take = {"authors": _take_authors, "pairs": _take_pair, "triplets": _take_triplet}[layout]
    size = 2 if layout == "pairs" else 1
    step = max(1, records_a_shard // size)
    paths = []
    for index, start in enumerate(range(0, len(entries), step)):
        batch = entries[start : start + step]
        stamps = [(entry.name, sorted((part, file.stamp) for part, file in entry.files.items())) for entry in batch]
        files = hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
        spec = StageSpec(stage, IMPORT_VERSION, {"layout": layout, "files": files}, suffix=".tar")
        plan = plan_shard(run, spec, index)
        if plan.state() != "done":
            with plan.writing(records_in=len(batch) * size) as out:
                for entry in batch:
                    _take_or_reject(entry, size, take, out)
        paths.append(plan.path)
        report(start + len(batch), len(entries))
    leave_out_shards(run, stage, len(paths))
    markers = [checked_marker(path) for path in paths]
    if not any(marker.records_out for marker in markers):
        rejected = sum((Counter(marker.rejected) for marker in markers), Counter())
        leave_out_shards(run, stage, 0)
        reasons = ", ".join(f"{reason} {count}" for reason, count in rejected.most_common())
        raise ValueError(
            f"nothing could be taken by the layout {layout}: {reasons}; {rejects_path(paths[0])} names each"
        )
    return paths


def leave_out_shards(run: Path, stage: str, count: int) -> None:
    """Unmark the shards from number `count` on, which an earlier and larger dataset left there."""
    for path in (run / stage).glob(f"[0-9][0-9][0-9][0-9][0-9]{MARKER_SUFFIX}"):
        if int(path.name[:5]) >= count:
            path.unlink()


def _take_or_reject(
    entry: Entry, size: int, take: Callable[[Entry], list[tuple[dict[str, Any], dict[str, bytes]]]], out: ShardWriter
) -> None:
    keys = copy_keys(entry.key, size)
    # A name may hold what no JSON can: bytes that are not UTF-8 come as lone surrogates and leave as escapes.
    source = {"source": entry.name.encode("utf-8", "backslashreplace").decode()}
    try:
        if entry.fault is not None:
            raise ValueError(entry.fault)
        taken = take(entry)
    except ValueError as error:
        for key in keys:
            out.reject({"key": key, **source}, str(error))
    else:
        for key, (record, parts) in zip(keys, taken, strict=True):
            out.add({**record, **source, "key": key}, parts)


def _take_authors(entry: Entry) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    target, mask, area = _target_and_mask(entry.read("generation.png"), entry.read("mask.png"))
    try:
        caption = _checked_caption(entry.read("caption.txt").decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError("caption is not UTF-8") from None
    folder = entry.name.rpartition("/")[0].rpartition("/")[2]
    noun = re.sub(r"[\W\d_]+$", "", folder.lower()).replace("_", " ") or "unknown"
    return [({"caption": caption, "subject": noun, "class": noun, "area": area}, {IMAGE: target, MASK: mask})]


def _take_triplet(entry: Entry) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    target, mask, area = _target_and_mask(entry.read(IMAGE), entry.read(MASK))
    record = _json_object(entry.read(RECORD))
    if record.get("key", entry.key) != entry.key:
        raise ValueError("record of another key")
    models = record.get("models", {})
    texts = [
        record.get("class", ""),
        record.get("subject", ""),
        *(models.values() if isinstance(models, dict) else [0]),
    ]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("class, subject or models are not texts")
    return [({**record, "caption": _checked_caption(record.get("caption")), "area": area}, {IMAGE: target, MASK: mask})]


def _take_pair(entry: Entry) -> list[tuple[dict[str, Any], dict[str, bytes]]]:
    """Both images of a pair as Subjects200K lays them out: two squares side by side, in frames of one width or none."""
    images = [part for part in entry.files if part != "json"]
    if len(images) > 1:
        raise ValueError("several images")
    both = decoded_image(entry.read(images[0] if images else "image")).convert("RGB")
    row = _json_object(entry.read("json"))
    described = row.get("description")
    if not isinstance(described, dict) or not isinstance(described.get("item"), str):
        raise ValueError("no description")
    if described.get("description_valid") is False:
        raise ValueError("description marked as not valid")
    frame = 2 * both.height - both.width  # the width is two sides and three frames, the height one side and two
    side = both.height - 2 * frame
    if not 0 <= frame < both.height // 8:
        raise ValueError("not two squares side by side")
    subject = _checked_caption(described["item"]).lower()
    record: dict[str, Any] = {"subject": subject, "class": str(described.get("category") or subject).lower()}
    record |= {"models": {}, "pair": entry.key, "quality": row.get("quality_assessment")}
    taken = []
    for number in range(2):
        left = frame + number * (side + frame)
        image = both.crop((left, frame, left + side, frame + side))
        caption = _checked_caption(described.get(f"description_{number}"))
        taken.append(({**record, "caption": caption}, {IMAGE: _jpeg(image)}))
    return taken


def _target_and_mask(target_file: bytes, mask_file: bytes) -> tuple[bytes, bytes, float]:
    """The target as JPEG, as it is if it is one; the mask as PNG of one channel; the share of the image it covers."""
    target, mask = decoded_image(target_file), decoded_image(mask_file).convert("L")
    if mask.size != target.size:
        raise ValueError("mask of another size than the image")
    if mask.getextrema() == (0, 1):  # not black and white, but false and true
        mask = mask.point(lambda value: 255 * value)
    histogram = mask.histogram()
    area = sum(histogram[128:]) / sum(histogram)
    if area in (0.0, 1.0):
        raise ValueError("mask of nothing" if area == 0 else "mask of everything")
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return target_file if target.format == "JPEG" else _jpeg(target.convert("RGB")), buffer.getvalue(), round(area, 4)


def _jpeg(image: Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        record = json.loads(content)
        json.dumps(record, allow_nan=False)
    except (ValueError, RecursionError):
        raise ValueError("broken JSON") from None
    if not isinstance(record, dict):
        raise ValueError("broken JSON")
    return record


def _checked_caption(text: object) -> str:
    caption = " ".join(text.split()) if isinstance(text, str) else ""
    if not caption or not caption.isprintable():
        raise ValueError("caption with control characters" if caption else "no caption")
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise ValueError("caption too long")
    return caption
