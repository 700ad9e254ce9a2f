"""The commands of `dreamcache` that look at what runs have made; none of them runs a flow."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from flows.ui import ui


def compare(
    first: Annotated[Path, typer.Argument(help="an evaluation's folder, or a run folder")],
    second: Annotated[Path, typer.Argument(help="another one, of the same benchmark and protocol")],
    variant: Annotated[str | None, typer.Option(help="which of their images, by default the adapters'")] = None,
) -> None:
    """Print the paired differences of two evaluations' scores, first minus second, with 95% intervals.

    Example: dreamcache compare runs/mine runs/mine/evaluation-of-elite
    """
    from flows.score_tables import compared

    print(compared(first, second, variant))


def attention_map(
    reference: Annotated[list[Path], typer.Option(help="RGBA cut-out or image on white; several show one subject")],
    prompt: Annotated[str, typer.Option(help="the text of the image")],
    box: Annotated[str, typer.Option(help="left,top,right,bottom in the image's pixels, or x,y for one pixel")],
    out: Annotated[Path, typer.Option(help="the folder to write image.png, maps.png and maps.npz into")],
    adapters: Annotated[Path | None, typer.Option(help="their folder [default: RUN/training/adapters]")] = None,
    seed: Annotated[int, typer.Option(help="the image's seed")] = 0,
    profile: Annotated[str, typer.Option("--profile", "-p", help="whose backbone the adapters are for")] = "miniature",
    run: Annotated[Path | None, typer.Option("--run", "-r", help="the run folder [default: runs/PROFILE]")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", "-s", help="change a setting of the profile")] = None,
) -> None:
    """Sample an image, and show where in the reference a box of it looks, at each layer.

    Example: dreamcache attention-map --run runs/demo --reference teapot.png --prompt "a teapot on a beach"
    --box 40,40,90,90 --out attention
    """
    import torch
    from PIL import Image

    from dreamcache import AdapterSet, load_backbone
    from dreamcache.attention_maps import write_attention_maps
    from flows.evaluation_plans import adapters_folder
    from flows.profiles import load_profile
    from flows.settings import parse_settings

    chosen = load_profile(profile, parse_settings(settings or []))
    numbers = [int(number) for number in box.split(",")] if re.fullmatch(r"\d+(,\d+){1,3}", box) else []
    if len(numbers) not in (2, 4):
        raise ValueError(f"--box {box!r} is neither left,top,right,bottom nor x,y, in whole pixels")
    left, top, right, bottom = numbers if len(numbers) == 4 else (*numbers, numbers[0] + 1, numbers[1] + 1)
    backbone = load_backbone(chosen.backbone, device="cuda" if torch.cuda.is_available() else "cpu")
    adapter_set = AdapterSet.from_pretrained(adapters or adapters_folder(run or Path("runs") / profile), backbone)
    references = [Image.open(path) for path in reference]
    sampling = chosen.evaluation.sampling
    shares = write_attention_maps(
        out, backbone, adapter_set, references, prompt, (left, top, right, bottom), sampling, seed
    )
    print("share of the box's attention that the reference's subject gets, and its share of the area:")
    for layer, (attention, area) in shares.items():
        print(f"  {layer:26} {attention:6.1%} {area:6.1%}")
    print(f"Maps: {out / 'maps.png'}")


RUN_COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("compare", compare),
    ("attention-map", attention_map),
    ("ui", ui),
)
