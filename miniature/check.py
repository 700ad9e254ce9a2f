"""Quality of the miniature's checkpoints on held-out seeds, line by line: `python -m miniature.check [NAME ...]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from datagen.captions import CaptionsConfig, parse_reply, render_prompt
from datagen.captions_transformers import TransformersCaptioner
from datagen.masks import MasksConfig, choose_mask, load_engines
from dreamcache.dreambooth.embedders import ClipEmbedder, load_clip, load_dino
from miniature.grammar import with_article
from miniature.places import PHRASES, PLACES
from miniature.subjects import CLASSES, sample_instance, sample_palette_sharer
from miniature.train.examples import sample_request
from miniature.train.workspace import CHECKPOINTS
from miniature.world import HELD_OUT_SEEDS, Scene, make_scene

BOX_SCORE = 0.3  # the gate's threshold on a box, as in the profiles


@dataclass(frozen=True)
class Line:
    """One figure beside its mark; `higher` is better in all of them."""

    name: str
    value: float
    mark: float
    unit: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure meets its mark; one that is no number does not."""
        return self.value >= self.mark

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "FAIL"
        return f"{verdict}  {self.name}: {self.value:.3g}{self.unit} (mark {self.mark:g}{self.unit})"


def held_out(count: int, **fixed: object) -> list[Scene]:
    return [make_scene(HELD_OUT_SEEDS + index, **fixed) for index in range(count)]  # type: ignore[arg-type]


def share(hits: list[bool]) -> float:
    return 100.0 * sum(hits) / len(hits)


def check_vae(checkpoints: Path) -> Iterator[Line]:
    """PSNR of 128 decoded scenes, the mean of their own figures; also from mirrored and from smaller latents."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(checkpoints / "stable-diffusion" / "vae", torch_dtype=torch.float32)
    changes: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
        "reconstruction": (30, lambda tensor: tensor),
        "reconstruction from mirrored latents": (26, lambda tensor: tensor.flip(-1)),
        "reconstruction at half the size from latents made smaller": (22, halved),
    }
    figures: dict[str, list[float]] = {name: [] for name in changes}
    for scene in held_out(128):
        image = torch.from_numpy(np.asarray(scene.image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.inference_mode():
            latents = vae.encode(image).latent_dist.mean
            for name, (_, change) in changes.items():
                error = (vae.decode(change(latents)).sample.clamp(-1, 1) - change(image)).square().mean()
                figures[name].append(float(10 * torch.log10(4 / error)))
    for name, (mark, _) in changes.items():
        yield Line(f"VAE, {name}, PSNR", float(np.mean(figures[name])), mark, " dB")


def halved(tensor: Tensor) -> Tensor:
    return F.interpolate(tensor, scale_factor=0.5, mode="bilinear", antialias=True)


def zero_shot(clip: ClipEmbedder, images: list[Image.Image], choices: list[list[str]]) -> list[int]:
    """The index of the choice whose phrases, averaged, lie nearest to each image."""
    texts = torch.stack([clip.embed_prompts(phrases).mean(0) for phrases in choices])
    similarity = clip.embed_images(images) @ torch.nn.functional.normalize(texts, dim=-1).T
    return similarity.argmax(-1).tolist()


def class_phrases() -> list[list[str]]:
    return [[with_article(name), f"a photo of {with_article(name)}"] for name in CLASSES]


def place_phrases() -> list[list[str]]:
    return [[form.format(phrase) for phrase in PHRASES[place] for form in ("{}", "a photo {}")] for place in PLACES]


def named(clip: ClipEmbedder, images: list[Image.Image], wanted: list[tuple[str, str]]) -> tuple[float, float]:
    """Shares of the images, in percent, whose class and whose place CLIP names rightly."""
    classes = zero_shot(clip, images, class_phrases())
    places = zero_shot(clip, images, place_phrases())
    return (
        share([CLASSES[found] == name for found, (name, _) in zip(classes, wanted, strict=True)]),
        share([PLACES[found] == place for found, (_, place) in zip(places, wanted, strict=True)]),
    )


def check_clip(checkpoints: Path) -> Iterator[Line]:
    scenes = held_out(512)
    right = named(load_clip(checkpoints / "clip"), [s.image for s in scenes], [(s.class_name, s.place) for s in scenes])
    yield Line("CLIP zero-shot on drawn images, class", right[0], 98, "%")
    yield Line("CLIP zero-shot on drawn images, place", right[1], 98, "%")


def check_generation(checkpoints: Path, images: int = 128) -> Iterator[Line]:
    """What CLIP sees in images made of "a CLASS PLACE" by the miniature Stable Diffusion (25 steps, guidance 3.5)."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        checkpoints / "stable-diffusion", torch_dtype=torch.float32, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(HELD_OUT_SEEDS)
    wanted = [(CLASSES[rng.integers(len(CLASSES))], PLACES[rng.integers(len(PLACES))]) for _ in range(images)]
    made: list[Image.Image] = []
    for first in range(0, images, 16):
        batch = wanted[first : first + 16]
        made += pipeline(
            [f"{with_article(name)} {PHRASES[place][0]}" for name, place in batch],
            num_inference_steps=25,
            guidance_scale=3.5,
            generator=[torch.Generator().manual_seed(HELD_OUT_SEEDS + first + row) for row in range(len(batch))],
        ).images
    right = named(load_clip(checkpoints / "clip"), made, wanted)
    yield Line("generated images, class seen by CLIP", right[0], 90, "%")
    yield Line("generated images, place seen by CLIP", right[1], 95, "%")


def is_nearest(embedded: Tensor) -> bool:
    """Whether the second of embeddings lies nearer to the first than all others; a tie, or what is no number, does not.

    embedded: (N, E) unit vectors.
    """
    similarity = embedded[1:] @ embedded[0]
    return bool(similarity[0] > similarity[1:].max())


def check_dino(checkpoints: Path, trials_a_class: int = 4) -> Iterator[Line]:
    """Finds an instance, seen in one place, among 64 of its class in another; 16 of them share its palette."""
    dino = load_dino(checkpoints / "dino")
    hits = []
    for class_index, name in enumerate(CLASSES):
        rng = np.random.default_rng([HELD_OUT_SEEDS, class_index])
        for trial in range(trials_a_class):
            instance = sample_instance(name, rng)
            others = [sample_palette_sharer(instance, rng) for _ in range(16)]
            others += [sample_instance(name, rng) for _ in range(47)]
            seed = HELD_OUT_SEEDS + 10_000 * (class_index * trials_a_class + trial + 1)
            places = rng.permutation(len(PLACES))
            asked = make_scene(seed, instance=instance, place=PLACES[places[0]]).image
            gallery = [
                make_scene(seed + 1 + row, instance=one, place=PLACES[places[1]]).image
                for row, one in enumerate([instance, *others])
            ]
            hits.append(is_nearest(dino.embed_images([asked, *gallery])))
    yield Line("DINO, instance among 64 of its class, 16 sharing its palette", share(hits), 95, "%")


def check_masks(checkpoints: Path, scenes: int = 256) -> Iterator[Line]:
    """Box from the noun and mask from the box, for both objects of scenes with two, and for nouns not shown."""
    config = MasksConfig(box_model=str(checkpoints / "detector"), mask_model=str(checkpoints / "sam"))
    finder, cutter = load_engines(config)
    drawn = held_out(scenes, second=True)
    rng = np.random.default_rng(HELD_OUT_SEEDS)
    overlaps: dict[str, list[float]] = {"subject": [], "other object": []}
    unboxed = []
    for first in range(0, scenes, 32):
        batch = drawn[first : first + 32]
        images = [scene.image for scene in batch]
        for role, overlap in overlaps.items():
            shown = [scene if role == "subject" else scene.second for scene in batch]
            found = finder.find(images, [one.class_name for one in shown if one])
            for image, one, boxes in zip(images, shown, found, strict=True):
                assert one is not None
                if not boxes or boxes[0].score < BOX_SCORE:
                    overlap.append(0.0)
                    continue
                mask = choose_mask(cutter.cut([image], [boxes[0].box])[0], boxes[0].box, config)[0]
                true = one.mask >= 128
                overlap.append(float((mask & true).sum() / (mask | true).sum()))
        absent = []
        for scene in batch:
            others = [
                name for name in CLASSES if name not in (scene.class_name, scene.second and scene.second.class_name)
            ]
            absent.append(others[rng.integers(len(others))])
        unboxed += [not boxes or boxes[0].score < BOX_SCORE for boxes in finder.find(images, absent)]
    both = float(np.mean(overlaps["subject"] + overlaps["other object"]))
    yield Line("box and mask from the noun, mean IoU over both objects", both, 0.92)
    for role, overlap in overlaps.items():
        print(f"      of which {role}: {np.mean(overlap):.3f}", flush=True)
    yield Line("absent class unboxed", share(unboxed), 95, "%")


def check_llama(checkpoints: Path, captions: int = 256) -> Iterator[Line]:
    writer = TransformersCaptioner(
        CaptionsConfig(model=str(checkpoints / "llama"), taxonomy=str(checkpoints / "taxonomy.json"))
    )
    rng = np.random.default_rng(HELD_OUT_SEEDS)
    requests = [sample_request(rng) for _ in range(captions)]
    replies = writer.write(
        [render_prompt(request.subject, request.place, request.extra) for request in requests],
        [HELD_OUT_SEEDS + index for index in range(captions)],
    )
    parsed = []
    for request, reply in zip(requests, replies, strict=True):
        try:
            parsed.append(parse_reply(reply).class_name == request.subject)
        except ValueError:
            parsed.append(False)
    yield Line("Llama, captions that parse and name the subject asked for", share(parsed), 99, "%")


CHECKS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "llama": check_llama,
    "clip": check_clip,
    "vae": check_vae,
    "dino": check_dino,
    "masks": check_masks,
    "generation": check_generation,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m miniature.check", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CHECKS)} (default: all)")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(CHECKS)
    if unknown:
        parser.error(f"no check named {', '.join(sorted(unknown))}: choose from {', '.join(CHECKS)}")
    failed = 0
    for name in arguments.names or CHECKS:
        started = time.monotonic()
        for line in CHECKS[name](arguments.checkpoints):
            print(f"{line}  [{time.monotonic() - started:.0f} s]", flush=True)
            failed += not line.passed
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
