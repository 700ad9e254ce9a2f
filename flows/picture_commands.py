"""The commands of `dreamcache` that personalize: a photo's feature cache, pictures of it, and where they look."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.command import SetOption, configuration, run_option
from flows.profiles import Profile, changed_settings, load_profile
from flows.progress import Progress

if TYPE_CHECKING:
    from dreamcache.attention_maps import Region
    from dreamcache.configs import SamplingConfig

Photo = Annotated[Path, typer.Argument(metavar="IMAGE", help="a photo, an RGBA cut-out or an image on white")]
Prompts = Annotated[list[str], typer.Argument(metavar="PROMPT", help="what to show: a dog on a beach")]
NounOption = Annotated[str | None, typer.Option(help="what the photo shows, for the profile's mask models: dog")]
MaskOption = Annotated[Path | None, typer.Option(help="a mask of the photo's size, white on the subject")]
CountOption = Annotated[int, typer.Option(min=1, help="pictures of each prompt, from seed 0 on")]
SeedsOption = Annotated[str | None, typer.Option(help="the seeds of each prompt's pictures, instead: 3,5,8")]
ScaleOption = Annotated[
    float | None, typer.Option(min=0, help="the reference's guidance scale", show_default="the profile's")
]
AdaptersOption = Annotated[
    str | None,
    typer.Option(
        help="adapters: a folder, a Hub name or cross_attention-STEP.pt", show_default="RUN's, or the profile's"
    ),
]
OfProfileOption = Annotated[
    str | None, typer.Option("--profile", "-p", help="whose models to use", show_default="RUN's, or miniature")
]
OfRunOption = Annotated[Path | None, run_option("a run folder, whose trained adapters and settings to use")]


def personalize(
    image: Photo,
    prompts: Prompts,
    noun: NounOption = None,
    mask: MaskOption = None,
    out: Annotated[
        Path | None, typer.Option(help="the folder for the pictures", show_default="personalized/IMAGE's name")
    ] = None,
    count: CountOption = 4,
    seeds: SeedsOption = None,
    scale: ScaleOption = None,
    adapters: AdaptersOption = None,
    profile: OfProfileOption = None,
    run: OfRunOption = None,
    settings: SetOption = None,
) -> None:
    """Show the subject of one photo elsewhere: cut it out, cache its features, sample pictures of each prompt.

    The pictures carry prompt, seed and settings in themselves; beside them lie a contact sheet, sheet.jpg, and the
    feature cache, cache.safetensors, for `dreamcache generate`. Started again, it makes what is missing.

    Example: dreamcache personalize dog.jpg "a dog on a beach" "a dog in the snow" --noun dog --run runs/demo
    """
    chosen, location = _models(profile, run, adapters, settings)
    numbers, sampling = _seeds(seeds, count), _sampling(chosen, scale)
    from flows.models import load_pipeline
    from flows.personalize import cut_out, subject_cache, write_pictures

    photo = cut_out(image, chosen, noun, mask)
    pipeline = load_pipeline(chosen, location)
    print(f"Adapters: {location}")
    found = subject_cache(pipeline, photo, noun)
    folder = out or Path("personalized") / image.stem
    write_pictures(pipeline, found, location, list(dict.fromkeys(prompts)), numbers, sampling, folder)
    found.save(folder / "cache.safetensors")
    print(f"Feature cache: {folder / 'cache.safetensors'}")


def cache(
    image: Photo,
    out: Annotated[Path, typer.Option(help="the file to write, FILE.safetensors")],
    noun: NounOption = None,
    mask: MaskOption = None,
    adapters: AdaptersOption = None,
    profile: OfProfileOption = None,
    run: OfRunOption = None,
    settings: SetOption = None,
) -> None:
    """Cut out the subject of a photo and cache its features, once for all pictures.

    Example: dreamcache cache dog.jpg --noun dog --out dog.safetensors --run runs/demo
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"--out {out} is not named FILE.safetensors")
    chosen, location = _models(profile, run, adapters, settings)
    from flows.models import load_pipeline
    from flows.personalize import cut_out, subject_cache

    photo = cut_out(image, chosen, noun, mask)
    found = subject_cache(load_pipeline(chosen, location), photo, noun)
    out.parent.mkdir(parents=True, exist_ok=True)
    found.save(out)
    print(f"Feature cache: {out}, {out.stat().st_size / 1e6:.1f} MB, for the adapters {location}")


def generate(
    file: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="a feature cache of `dreamcache cache`")],
    prompts: Prompts,
    out: Annotated[
        Path | None, typer.Option(help="the folder for the pictures", show_default="FILE, without .safetensors")
    ] = None,
    count: CountOption = 4,
    seeds: SeedsOption = None,
    scale: ScaleOption = None,
    adapters: AdaptersOption = None,
    profile: OfProfileOption = None,
    run: OfRunOption = None,
    settings: SetOption = None,
) -> None:
    """Sample pictures of a subject whose features are cached; the files are as those of `dreamcache personalize`.

    Example: dreamcache generate dog.safetensors "a dog on a beach" --seeds 3,5,8 --run runs/demo
    """
    chosen, location = _models(profile, run, adapters, settings)
    numbers, sampling = _seeds(seeds, count), _sampling(chosen, scale)
    from dreamcache.cache import FeatureCache
    from flows.models import load_pipeline
    from flows.personalize import check_cache, write_pictures

    found = FeatureCache.load(file)
    pipeline = load_pipeline(chosen, location)
    check_cache(found, pipeline, file)
    print(f"Adapters: {location}")
    found = found.to(pipeline.backbone.device)
    folder = out or file.with_suffix("")
    write_pictures(pipeline, found, location, list(dict.fromkeys(prompts)), numbers, sampling, folder)


def attention_map(
    reference: Annotated[list[Path], typer.Option(help="a photo, cut-out or image on white; several show one subject")],
    prompt: Annotated[str, typer.Option(help="the text of the image")],
    out: Annotated[Path, typer.Option(help="the folder to write image.png, maps.png and maps.npz into")],
    box: Annotated[
        str | None, typer.Option(help="left,top,right,bottom in the image's pixels, or x,y for one pixel")
    ] = None,
    region: Annotated[
        Path | None, typer.Option(help="instead of a box, a mask of the image's size, white where to look from")
    ] = None,
    noun: NounOption = None,
    mask: Annotated[list[Path] | None, typer.Option(help="a mask of each reference, white on the subject")] = None,
    seed: Annotated[int, typer.Option(help="the image's seed")] = 0,
    adapters: AdaptersOption = None,
    profile: OfProfileOption = None,
    run: OfRunOption = None,
    settings: SetOption = None,
) -> None:
    """Sample an image, and show where in the reference a box or another region of it looks, at each layer.

    Example: dreamcache attention-map --reference teapot.png --prompt "a teapot on a beach" --box 40,40,90,90
    --out attention --run runs/demo
    """
    chosen, location = _models(profile, run, adapters, settings)
    if mask and len(mask) != len(reference):
        raise ValueError(f"there are {len(reference)} references and {len(mask)} masks: give --mask once for each")
    where = _region(box, region)
    from dreamcache.attention_maps import write_attention_maps
    from flows.models import load_pipeline
    from flows.personalize import cut_out

    masks: Sequence[Path | None] = mask or [None] * len(reference)
    references = [cut_out(path, chosen, noun, cut) for path, cut in zip(reference, masks, strict=True)]
    pipeline = load_pipeline(chosen, location)
    shares = write_attention_maps(
        out, pipeline.backbone, pipeline.adapters, references, prompt, where,
        chosen.evaluation.sampling, seed, noun or "", Progress("sampled", "steps"),
    )  # fmt: skip
    print("share of the region's attention that the reference's subject gets, and its share of the area:")
    for layer, (attention, area) in shares.items():
        print(f"  {layer:26} {attention:6.1%} {area:6.1%}")
    print(f"Maps: {out / 'maps.png'}")


def _region(box: str | None, mask: Path | None) -> Region:
    if box is None and mask is not None:
        from dreamcache.dreambooth.embedders import open_image

        return open_image(mask).convert("L")
    if box is None or mask is not None:
        raise ValueError("give either --box or --region")
    numbers = [int(number) for number in box.split(",")] if re.fullmatch(r"\d+(,\d+){1,3}", box) else []
    if len(numbers) not in (2, 4):
        raise ValueError(f"--box {box!r} is neither left,top,right,bottom nor x,y, in whole pixels")
    left, top, right, bottom = numbers if len(numbers) == 4 else (*numbers, numbers[0] + 1, numbers[1] + 1)
    return left, top, right, bottom


def _models(
    profile: str | None, run: Path | None, adapters: str | None, settings: list[str] | None
) -> tuple[Profile, str]:
    """The profile, by default the one that a run was made with, and the adapters to use."""
    from flows.personalize import chosen_adapters
    from flows.profiles import recorded_profile

    recorded = recorded_profile(run) if run is not None and profile is None else None
    chosen, _, changed = configuration(profile or (recorded.name if recorded else "miniature"), run, settings)
    if recorded is not None:
        chosen = load_profile(recorded.name, changed_settings(recorded) | changed)
    return chosen, chosen_adapters(chosen, run, adapters)


def _seeds(seeds: str | None, count: int) -> list[int]:
    if seeds is None:
        return list(range(count))
    if not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise ValueError(f"--seeds {seeds!r} are not whole numbers with commas between, such as 3,5,8")
    return list(dict.fromkeys(map(int, seeds.split(","))))


def _sampling(profile: Profile, scale: float | None) -> SamplingConfig:
    sampling = profile.evaluation.sampling
    if scale is None:
        return sampling
    sampling.require_image_scale("--scale")
    return sampling.model_copy(update={"image_guidance_scale": scale})


PICTURE_COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("personalize", personalize),
    ("cache", cache),
    ("generate", generate),
    ("attention-map", attention_map),
)
