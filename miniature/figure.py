"""`python -m miniature.figure RUN`: the README's picture, of what a run made at each stage and of one photo's way.

Above, the stages that make the dataset, the adapters and their scores; below, a reference, its feature cache, and
pictures with and without the adapters. Nothing is drawn that does not lie in the run, or follow from its adapters; the
same run, subject and machine give the same bytes.
"""

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dreamcache import AdapterSet, SamplingConfig, cache_reference, load_backbone, reference_image, sample_images
from miniature.dreambooth import choose_subjects, draw_images
from miniature.places import PHRASES
from shards.files import read_json_lines
from shards.triplets import TripletShards, triplet_paths

WIDTH, HEIGHT, EDGE = 1600, 830, 24
INK, SOFT, LINE, ACCENT = (28, 29, 31), (95, 99, 104), (216, 216, 210), (47, 111, 178)
CURVES = {"right": (29, 127, 79), "wrong": (194, 87, 26), "none": (122, 90, 181)}
SIDE, GAP = 197, 29  # of a stage's box
PLACES = ("beach", "snow", "jungle", "library")
SUBJECTS = 30


class Page:
    """A white page that is drawn on from left to right."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: int = 14, fill: tuple[int, int, int] = SOFT) -> None:
        for number, line in enumerate(text.split("\n")):
            self.draw.text((x, y + number * size * 1.3), line, fill=fill, font=ImageFont.load_default(size))

    def picture(self, x: int, y: int, side: int, image: Image.Image) -> None:
        resample = Image.Resampling.NEAREST if image.width < side // 2 else Image.Resampling.LANCZOS
        self.image.paste(image.convert("RGB").resize((side, side), resample), (x, y))
        self.draw.rectangle((x, y, x + side, y + side), outline=LINE)

    def arrow(self, x: int, y: int, length: int) -> None:
        self.draw.line((x, y, x + length - 7, y), fill=ACCENT, width=3)
        self.draw.polygon([(x + length - 9, y - 6), (x + length, y), (x + length - 9, y + 6)], fill=ACCENT)


def draw_figure(run: Path, adapters_folder: Path, subject_name: str) -> Image.Image:
    """The figure of a run folder, RGB, 1600 x 830; FileNotFoundError for a run that is not finished."""
    page = Page()
    _draw_stages(page, run)
    _draw_photo(page, run, adapters_folder, subject_name)
    return page.image


def _draw_stages(page: Page, run: Path) -> None:
    counts = {name: _counts(run, name) for name in ("captions", "dedup", "images", "masks", "triplets")}
    triplets = TripletShards(triplet_paths(run))
    triplet = triplets.read(0, 0)
    log = [row for row in csv.DictReader((run / "training" / "log.csv").open(newline="")) if row["validation_right"]]
    summary = json.loads((run / "evaluation" / "summary.json").read_bytes())
    captions = [record["caption"] for record in read_json_lines(run / "captions" / "00000.jsonl")][:4]
    target, mask = triplet.image, triplet.mask
    faded = Image.blend(ImageOps.grayscale(target).convert("RGB"), Image.new("RGB", target.size, "white"), 0.7)
    held_out = {kind: [float(row[f"validation_{kind}"]) for row in log] for kind in CURVES}
    if not log:
        raise ValueError(f"{run} has no held-out losses yet: let its training go on")
    last = {kind: curve[-1] for kind, curve in held_out.items()}
    variants = {name: kinds["overall"] for name, kinds in summary["variants"].items()}
    kept = counts["triplets"][1]
    stages: list[tuple[str, str, Any]] = [
        ("captions", f"{counts['captions'][1]:,} by a language model", captions),
        ("dedup", f"{counts['dedup'][0] - counts['dedup'][1]:,} of {counts['dedup'][0]:,} out", _duplicate(run)),
        ("images", f"{counts['images'][1]:,} by a diffusion model", target),
        ("masks", "a box from the noun,\na mask from the box", Image.composite(target, faded, mask)),
        ("triplets", f"{kept:,} of {counts['masks'][1]:,} pass the gates", reference_image(target, mask, target.width)),
        (
            "training",
            f"held-out loss: none {last['none']:.4f}\nwrong {last['wrong']:.4f}, right {last['right']:.4f}",
            held_out,
        ),
        ("evaluation", f"DINO of {summary['images']} images", variants),
    ]
    page.text(EDGE, 18, "One restartable DAG makes the dataset, the adapters and their scores", 22, INK)
    for number, (name, said, content) in enumerate(stages):
        x, y = EDGE + number * (SIDE + GAP), 96
        page.text(x, y - 28, name, 17, INK)
        page.draw.rectangle((x, y, x + SIDE, y + SIDE), outline=LINE)
        if isinstance(content, Image.Image):
            page.picture(x, y, SIDE, content)
        elif name == "training":
            _draw_curves(page, x, y, content)
        elif name == "evaluation":
            _draw_bars(page, x, y, content)
        else:
            _draw_captions(page, x, y, content, crossed=name == "dedup")
        page.text(x, y + SIDE + 8, said)
        if number:
            page.arrow(x - GAP + 4, y + SIDE // 2, GAP - 8)


def _counts(run: Path, stage: str) -> tuple[int, int]:
    """Records that entered a stage and left it."""
    markers = [json.loads(path.read_bytes()) for path in sorted((run / stage).glob("[0-9]*.done.json"))]
    return sum(marker["records_in"] for marker in markers), sum(marker["records_out"] for marker in markers)


def _duplicate(run: Path) -> list[str]:
    """A caption and the near duplicate of it that was rejected; empty where there was none."""
    for path in sorted((run / "dedup").glob("*.rejects.jsonl")):
        for record in read_json_lines(path):
            if "matched" in record:
                return [record["matched"]["caption"], record["caption"]]
    return []


def _draw_captions(page: Page, x: int, y: int, captions: Sequence[str], crossed: bool) -> None:
    top = float(y + 10)
    for number, caption in enumerate(captions):
        lines = _wrapped(caption, SIDE - 20, 14)
        page.text(x + 10, top, "\n".join(lines), 14, SOFT if crossed and number else INK)
        if crossed and number:
            for line in range(len(lines)):
                middle = round(top + line * 18.2 + 9)
                page.draw.line((x + 10, middle, x + SIDE - 14, middle), fill=CURVES["wrong"])
        top += len(lines) * 18.2 + 9


def _wrapped(text: str, width: int, size: int) -> list[str]:
    font, lines = ImageFont.load_default(size), [""]
    for word in text.split():
        if lines[-1] and font.getlength(f"{lines[-1]} {word}") > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _draw_curves(page: Page, x: int, y: int, curves: Mapping[str, Sequence[float]]) -> None:
    values = [value for curve in curves.values() for value in curve]
    low, high = min(values), max(max(values), min(values) + 1e-9)
    for kind, curve in curves.items():
        step = (SIDE - 30) / max(1, len(curve) - 1)
        heights = [y + 15 + (high - value) / (high - low) * (SIDE - 30) for value in curve]
        points = [(x + 15 + number * step, height) for number, height in enumerate(heights)]
        page.draw.line(points, fill=CURVES[kind], width=3, joint="curve")
        page.draw.circle(points[-1], 4, fill=CURVES[kind])


def _draw_bars(page: Page, x: int, y: int, variants: Mapping[str, Any]) -> None:
    shown = {"adapters": "right", "wrong-reference": "wrong", "no-adapters": "none"}
    present = [(name, kind) for name, kind in shown.items() if name in variants]
    most = max(variants[name]["dino"]["high"] or variants[name]["dino"]["mean"] for name, _ in present)
    for number, (name, kind) in enumerate(present):
        score, top = variants[name]["dino"], y + 14 + number * 60
        page.text(x + 12, top, f"{name.replace('-', ' ')}  {score['mean']:.3f}", 14, INK)
        values = [max(0.0, value or 0.0) for value in (score["mean"], score["low"], score["high"])]
        length = [value / max(most, 1e-9) * (SIDE - 24) for value in values]
        page.draw.rectangle((x + 12, top + 22, x + 12 + length[0], top + 34), fill=CURVES[kind])
        page.draw.line((x + 12 + length[1], top + 28, x + 12 + length[2], top + 28), fill=INK, width=2)


def _draw_photo(page: Page, run: Path, adapters_folder: Path, subject_name: str) -> None:
    recorded = json.loads((run / "config.json").read_bytes())
    subjects = {subject.name: subject for subject in choose_subjects(SUBJECTS)}
    if subject_name not in subjects:
        raise ValueError(f"there is no subject {subject_name}: choose one of {', '.join(subjects)}")
    subject = subjects[subject_name]
    backbone = load_backbone(Path(__file__).parent / "checkpoints" / "stable-diffusion")
    adapters = AdapterSet.from_pretrained(adapters_folder, backbone)
    (photo,) = draw_images(subject, 1)
    shown = reference_image(photo.image, Image.fromarray(photo.mask), backbone.image_size)
    noun = subject.instance.class_name
    cache = cache_reference(backbone, shown, **adapters.cache_settings(noun))
    prompts = [f"a {noun} {PHRASES[place][0]}" for place in PLACES]
    sampling = SamplingConfig(**recorded["evaluation"]["sampling"])
    seeds = range(len(prompts))
    rows = [sample_images(backbone, used, cache, prompts, sampling, seeds=seeds) for used in (adapters, None)]

    top, x = 392, EDGE
    page.draw.line((EDGE, top - 22, WIDTH - EDGE, top - 22), fill=LINE)
    page.text(x, top - 6, "One photo personalizes the frozen model, without finetuning", 22, INK)
    top += 70
    middle = top + 150
    for name, said, image in (("photo", noun, photo.image), ("reference", "the subject on white", shown)):
        page.text(x, top + 27, name, 17, INK)
        page.picture(x, top + 55, 190, image)
        page.text(x, top + 253, said)
        page.arrow(x + 194, middle, 24)
        x += 222
    page.text(x, top - 28, "feature cache", 17, INK)
    for number, feature in enumerate(cache.features.values()):
        left, up = x + number % 2 * 112, top + number // 2 * 112
        page.picture(left, up, 104, _as_colours(feature[0]))
    said = f"{len(cache.features)} layers in one\nU-Net pass at t = {adapters.config.cache_timestep}"
    said += "\n(three main\ncomponents)"
    page.text(x + 112, top + 2 * 112 + 20, said)
    x += 220
    page.arrow(x + 4, middle, 24)
    x += 36
    count = sum(parameter.numel() for parameter in adapters.parameters())
    page.draw.rounded_rectangle((x, middle - 66, x + 150, middle + 66), 12, outline=ACCENT, width=3)
    page.text(x + 20, middle - 34, f"frozen U-Net\n+ adapters\n{count / 1e6:.1f}M trained", 17, INK)
    page.arrow(x + 154, middle, 24)
    x += 190
    for column, prompt in enumerate(prompts):
        left = x + column * 160
        page.text(left, top - 28, prompt if len(prompt) < 22 else _wrapped(prompt, 155, 14)[0], 14, INK)
        for number, images in enumerate(rows):
            page.picture(left, top + number * 160, 150, images[column])
    page.text(x, top + 316, "above with the reference, below the same prompts and seeds without it")


def _as_colours(feature: torch.Tensor) -> Image.Image:
    """Features (C, H, W) as a picture of their three main components."""
    channels, height, width = feature.shape
    table = feature.reshape(channels, -1).T.double().numpy()
    table = table - table.mean(0)
    _, _, axes = np.linalg.svd(table, full_matrices=False)
    axes = axes[:3] * np.sign(axes[:3, np.abs(axes[:3]).argmax(1)].diagonal())[:, None]
    parts = table @ axes.T
    low, high = np.percentile(parts, [1, 99], axis=0)
    colours = np.clip((parts - low) / np.maximum(high - low, 1e-9), 0, 1) * 255
    return Image.fromarray(colours.reshape(height, width, -1).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.figure", description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run of the profile miniature")
    parser.add_argument("--out", type=Path, default=Path("docs/dreamcache.jpg"))
    parser.add_argument("--adapters", type=Path, help="other adapters than the run's own")
    parser.add_argument("--subject", default="teapot_0", help="of the drawn benchmark (default: %(default)s)")
    given = parser.parse_args()
    try:
        image = draw_figure(given.run, given.adapters or given.run / "training" / "adapters", given.subject)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=88, optimize=True, subsampling=0)
    given.out.write_bytes(content.getvalue())
    print(f"{given.out}: {len(content.getvalue()) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
