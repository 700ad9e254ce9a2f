"""One photo in, pictures out: the models, the subject cut out, its feature cache, pictures and their contact sheet."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, PngImagePlugin

from datagen.identity import model_identity
from flows.evaluation_plans import adapters_folder
from flows.pictures import contact_sheet, data_uri, from_data_uri, written
from flows.profiles import Profile
from flows.progress import Progress
from shards.files import written_at_once
from shards.memory import in_batches

if TYPE_CHECKING:
    from dreamcache.cache import FeatureCache
    from dreamcache.configs import SamplingConfig
    from dreamcache.pipeline import DreamCachePipeline

SIDE = 256
BATCH = 8


def chosen_adapters(profile: Profile, run: Path | None, given: str | None) -> str:
    """The adapters to use: those given, the run's trained ones, those that ship with the profile, or its usual run's.

    Raises FileNotFoundError where there are none.
    """
    if given is not None:
        return given
    if run is None and profile.compare_with is not None:
        return profile.compare_with
    folder = adapters_folder(run or Path("runs") / profile.name)
    if (folder / "config.json").is_file():
        return str(folder)
    if run is not None:
        raise FileNotFoundError(f"{run} has no trained adapters: dreamcache train-adapters --run {run}")
    raise FileNotFoundError(
        f"there are no adapters: the profile {profile.name} ships none and {folder} has none; name a run with trained "
        "ones by --run, or others by --adapters"
    )


def cut_out(path: Path, profile: Profile, noun: str | None, mask: Path | None) -> Image.Image:
    """The subject of a photo, as RGBA, or the image as it is where it shows its subject alone.

    The subject is where the mask says, or the alpha channel, or where the profile's mask models find the noun; else
    the image must be on white. ValueError or FileNotFoundError, with the file's name, where there is no subject.
    """
    from dreamcache.dreambooth.embedders import open_image
    from dreamcache.reference import reference_mask, shown_alone

    photo = open_image(path)
    original = ImageOps.exif_transpose(Image.open(path))
    alone = None if mask is not None else shown_alone(original)
    try:
        if mask is not None:
            found = open_image(mask).convert("L")
            if found.size != photo.size:
                raise ValueError(f"{mask} is {found.width} x {found.height}, the photo {photo.width} x {photo.height}")
            photo.putalpha(found)
        elif noun is not None and noun.strip() and alone != "cut out":
            from datagen.cutout import subject_mask

            found, said = subject_mask(photo, noun, profile.dataset.masks, profile.dataset.gates)
            print(said)
            photo.putalpha(found)
        elif alone is not None:
            photo = original
        else:
            raise ValueError("neither cut out nor on white")
        if reference_mask(photo).getbbox() is None:
            raise ValueError("it is white all over, there is no subject")
    except ValueError as error:
        advice = "name what it shows by --noun (perhaps otherwise), or give its --mask"
        raise ValueError(f"{path}: {error}; {advice}") from error
    return photo


def subject_cache(pipeline: DreamCachePipeline, image: Image.Image, noun: str | None) -> FeatureCache:
    """The feature cache of a cut-out or an image on white; its settings hold the reference's digest and its picture."""
    from dreamcache.reference import reference_image

    shown = reference_image(image, size=pipeline.backbone.image_size)
    cache = pipeline.cache(shown, subject=noun or "")
    digest = hashlib.sha256(shown.tobytes()).hexdigest()
    more = {"subject": noun or "", "reference": digest, "picture": data_uri(shown, SIDE)}
    return replace(cache, settings={**cache.settings, **more})


def check_cache(cache: FeatureCache, pipeline: DreamCachePipeline, path: Path) -> None:
    """ValueError if a cache is of another backbone, or was not made as the adapters read it."""
    wanted = pipeline.adapters.cache_settings(str(cache.settings.get("subject", "")))
    differs = [name for name in ("timestep", "prompt") if cache.settings.get(name, wanted[name]) != wanted[name]]
    if cache.backbone_identity != pipeline.backbone.identity:
        differs.append("backbone")
    if not set(wanted["layers"]) <= cache.features.keys():
        differs.append("layers")
    if differs:
        raise ValueError(f"{path} was cached for another {' and '.join(differs)} than these adapters': cache it again")


@dataclass(frozen=True)
class _Picture:
    """A picture to be: where it goes, and the texts that its file carries."""

    path: Path
    prompt: str
    seed: int
    settings: str

    @property
    def texts(self) -> dict[str, str]:
        return {"prompt": self.prompt, "seed": str(self.seed), "settings": self.settings}

    def is_there(self) -> bool:
        """Whether it has been made already; ValueError where another reference's, or another file, would be lost."""
        if not self.path.exists():
            return False
        try:
            with Image.open(self.path) as image:
                image.load()
                found: dict[str, str] = getattr(image, "text", {})
            digests = [json.loads(text)["reference"]["reference"] for text in (found["settings"], self.settings)]
            if digests[0] == digests[1]:
                return found == self.texts
        except (OSError, SyntaxError, ValueError, KeyError, TypeError):
            pass
        raise ValueError(f"{self.path} is no picture of this reference: choose another folder by --out")

    def save(self, image: Image.Image) -> None:
        texts = PngImagePlugin.PngInfo()
        for name, text in self.texts.items():
            texts.add_itxt(name, text)
        with written_at_once(self.path) as file:
            image.save(file, "PNG", pnginfo=texts)


def write_pictures(
    pipeline: DreamCachePipeline,
    cache: FeatureCache,
    adapters: str,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: SamplingConfig,
    out: Path,
) -> None:
    """Write a picture a prompt and seed into a folder, `NUMBER-PROMPT-SEED.png`, and `sheet.jpg` of all of them.

    A picture carries prompt, seed and settings as texts of the PNG file; one that is there with the same texts stays.
    ValueError, with nothing written, where another reference's picture or another file bears the name; and, at the
    end, where pictures came out of one colour.
    """
    from dreamcache.sampling import sample_images

    reference = {"reference": _digest(cache)} | {n: value for n, value in cache.settings.items() if n != "picture"}
    models = {"backbone": pipeline.backbone.identity, "adapters": model_identity(adapters, "adapters")}
    settings = json.dumps({"sampling": sampling.model_dump(), **models, "reference": reference}, sort_keys=True)
    pictures = [
        _Picture(out / f"{number:02d}-{_in_file_names(prompt)}-{seed}.png", prompt, seed, settings)
        for number, prompt in enumerate(prompts)
        for seed in seeds
    ]
    waiting = [picture for picture in pictures if not picture.is_there()]
    progress, done = Progress("sampled", "steps of pictures"), 0

    def sample(batch: Sequence[_Picture]) -> list[Image.Image]:
        return sample_images(
            pipeline.backbone, pipeline.adapters, cache, [picture.prompt for picture in batch], sampling,
            seeds=[picture.seed for picture in batch], batch_size=len(batch),
            progress=lambda step, steps: progress(done * steps + len(batch) * step, len(waiting) * steps),
        )  # fmt: skip

    execution: dict[str, Any] = {"batch_size": BATCH}
    plain = []
    out.mkdir(parents=True, exist_ok=True)
    for batch, images in in_batches(waiting, execution, sample):
        for picture, image in zip(batch, images, strict=True):
            if len(image.getcolors(1) or ()) == 1:  # what NaN turns into; None: more than one colour
                plain.append(picture.path)
            else:
                picture.save(image)
        done += len(batch)
    with written_at_once(out / "sheet.jpg") as file:
        made = [None if picture.path in plain else picture.path for picture in pictures]
        _sheet(cache, prompts, made).save(file, "JPEG", quality=90)
    for picture in pictures:
        if picture.path not in plain:
            print(f"{picture.path}{'' if picture in waiting else ' (there already)'}")
    print(f"Contact sheet: {out / 'sheet.jpg'}")
    if plain:
        named = ", ".join(map(str, plain))
        raise ValueError(f"{len(plain)} of {len(pictures)} pictures came out of one colour and were left out: {named}")


def _digest(cache: FeatureCache) -> str:
    """A digest of the features, for a cache that does not say its reference's."""
    total = hashlib.sha256()
    for name, tensor in sorted(cache.features.items()):
        total.update(name.encode() + tensor.float().cpu().numpy().tobytes())
    return total.hexdigest()


def _in_file_names(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-") or "prompt"


def _sheet(cache: FeatureCache, prompts: Sequence[str], paths: Sequence[Path | None]) -> Image.Image:
    """The reference, the prompt and its pictures, a row a prompt."""
    seeds = len(paths) // len(prompts)
    shown = cache.settings.get("picture")
    reference = written("(its picture is not in the cache)", SIDE) if shown is None else from_data_uri(shown)
    cells: list[Image.Image] = []
    for number, prompt in enumerate(prompts):
        cells += [reference, written(prompt, SIDE)]
        for path in paths[number * seeds : (number + 1) * seeds]:
            cells.append(written("of one colour", SIDE) if path is None else Image.open(path))
    return contact_sheet(cells, 2 + seeds, SIDE)
