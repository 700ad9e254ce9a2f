"""A dataset's card: what it holds, how it was made, and the terms of the models that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CLASSES_LISTED = 30
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(statistics: Mapping[str, Any], terms: Mapping[str, str]) -> str:
    """The card as Markdown with the front matter that the Hugging Face Hub and `datasets` read.

    `statistics` is what statistics.json holds: `triplet_statistics` with `stages` beside; `terms` says under which
    terms a model, by its identity, may be used.
    """
    count = statistics["triplets"]
    size = next((name for limit, name in SIZES if count < limit), "1M<n<10M")
    lines = ["---", "pretty_name: Subject triplets", "task_categories:", "- text-to-image", "size_categories:"]
    lines += [f"- {size}", "license: other", "license_name: terms-of-the-models-below", "configs:"]
    lines += ["- config_name: default", "  data_files:", "  - split: train", '    path: "*.tar"', "---", ""]
    lines += ["# Subject triplets", ""]
    size_in_gb = statistics["bytes"] / 1e9
    lines += [
        f"{count:,} triplets in {statistics['shards']:,} WebDataset shards, {size_in_gb:.3f} GB: a target image, the "
        "mask of its subject, and a caption, to train personalized image generation on. The reference image, the "
        "subject on white, is cut out of the target by the mask when it is read.",
        "",
        "| file | content |",
        "|---|---|",
        "| `KEY.jpg` | the target |",
        "| `KEY.mask.png` | the subject's mask: one channel, 255 on the subject |",
        "| `KEY.json` | caption, subject (its noun), class, and what is known of how they came to be |",
        "",
        "`webdataset.WebDataset(urls)` reads the shards as they are, and so does `datasets.load_dataset` of this "
        "folder. `index.json` lists them with counts and checksums; `statistics.json` holds the figures below.",
        "",
        "## Models and their terms",
        "",
        *_models(statistics["models"], terms),
        "",
        "## How it was made",
        "",
        *_table(
            ("stage", "in", "out", "rejected"),
            [
                (stage, f"{row['in']:,}", f"{row['out']:,}", _counted(row["rejected"]))
                for stage, row in statistics["stages"].items()
            ],
        ),
        "",
        f"{_copies(statistics['stages'])}Every record that enters a stage leaves it or is rejected under a reason.",
        "",
        "## What is in it",
        "",
        *_table(
            ("", "lowest", "mean", "highest"),
            [
                (label, *(f"{statistics[name].get(kind, 0):g}" for kind in ("lowest", "mean", "highest")))
                for label, name in (("words of a caption", "caption_words"), ("mask, share of the image", "mask_area"))
            ],
        ),
        "",
        f"{len(statistics['classes'])} classes: {_counted(statistics['classes'], CLASSES_LISTED)}.",
    ]
    return "\n".join(lines) + "\n"


def _copies(stages: Mapping[str, Any]) -> str:
    """A sentence where images were made several a caption, else nothing."""
    copies = stages.get("images", {}).get("copies", 1)
    return f"Of each caption {copies} images are made. " if copies > 1 else ""


def _models(models: Mapping[str, Mapping[str, int]], terms: Mapping[str, str]) -> list[str]:
    if not models:
        return ["The records name no models: the terms are those of the dataset that they come from."]
    rows = [
        (role, identity.removeprefix("hub:"), f"{count:,}", terms.get(identity, "not known: see where they come from"))
        for role, identities in models.items()
        for identity, count in identities.items()
    ]
    return _table(("part", "model", "triplets", "terms"), rows)


def _counted(counts: Mapping[str, int], most: int | None = None) -> str:
    listed = [f"{_plain(name)} {count:,}" for name, count in list(counts.items())[:most]]
    return ", ".join(listed + (["..."] if most is not None and len(counts) > most else [])) or "none"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines]


def _plain(text: str) -> str:
    """Text that cannot end a table's cell or begin markup: classes may come from strangers' datasets."""
    return " ".join(text.replace("|", "/").replace("<", "&lt;").split())
