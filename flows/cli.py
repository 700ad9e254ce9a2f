"""The console script `dreamcache`; only commands that run flows import Prefect, only stages with models torch."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flows.profiles import Profile, load_profile
from flows.settings import parse_settings

app = typer.Typer(
    name="dreamcache",
    help="Build the dataset, train DreamCache adapters on it, and measure them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="miniature (CPU, ships here) or full (GPU)")]
RunOption = Annotated[Path | None, typer.Option("--run", "-r", help="the run folder [default: runs/PROFILE]")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="change a setting: images.guidance_scale=5.0 (repeatable)")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="only say what would be done, and why")]
DebugOption = Annotated[bool, typer.Option("--debug", help="show tracebacks and all of Prefect's messages")]
ParentOption = Annotated[bool, typer.Option("--end-with-parent", hidden=True)]


def _add_flow_command(name: str, text: str, example: str) -> None:
    def command(
        profile: ProfileOption = "miniature",
        run: RunOption = None,
        settings: SetOption = None,
        dry_run: DryRunOption = False,
        debug: DebugOption = False,
        end_with_parent: ParentOption = False,
    ) -> None:
        if end_with_parent:
            from shards.processes import end_with_parent as end

            end()
        chosen, folder, changed = _configuration(profile, run, settings)
        _or_one_line(lambda: _plan_then_run(name, chosen, folder, changed, dry_run, debug), debug)

    command.__doc__ = f"{text}\n\nExample: dreamcache {name} {example}"
    app.command(name)(command)


_add_flow_command("run", "Do all of it: dataset, adapters, evaluation, report.", "--run runs/demo")
_add_flow_command(
    "build-dataset",
    "Make triplets: captions, dedup, images, masks, gates, shards.",
    "--run runs/big --set images.guidance_scale=5.0 --dry-run",
)
_add_flow_command(
    "train-adapters",
    "Train adapters on a run's triplets, going on where a killed training stood.",
    "--run runs/big --set training.steps=2000",
)
_add_flow_command(
    "evaluate-adapters",
    "Measure a run's adapters on the DreamBooth benchmark.",
    "--run runs/big --set evaluation.images_per_prompt=4",
)


@app.command()
def evaluate(
    images: Annotated[
        Path | None, typer.Option(help="a folder with an image a case: SUBJECT/PROMPT-POSITION.png")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="real images against real images instead")] = False,
    rows: Annotated[Path | None, typer.Option(help="sum up an evaluation's folder again, from its stored rows")] = None,
    name: Annotated[str | None, typer.Option(help="what the scores are called [default: the folder's name]")] = None,
    dataset: Annotated[Path | None, typer.Option(help="DreamBooth's folder, in place of the profile's")] = None,
    profile: ProfileOption = "miniature",
    run: RunOption = None,
    settings: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Score any images as a run's own are scored, calibrate on the real ones, or sum up stored rows again.

    Example: dreamcache evaluate --images peers/elite --dataset dreambooth/dataset --profile full --run runs/mine
    """
    if sum((images is not None, calibrate, rows is not None)) != 1:
        _fail("evaluate needs one of --images FOLDER, --calibrate and --rows FOLDER", 2)
    given = settings or []
    chosen, folder, changed = _configuration(profile, run, given + ([f"benchmark={dataset}"] if dataset else []))

    def score() -> None:
        from flows import score_tables

        if rows is not None:
            table, same = score_tables.recomputed(rows)
            said = "the same, to the last digit" if same else "something else: it is not of these rows"
            print(table, f"summary.json says {said}.", sep="\n")
        else:
            _score_images(chosen, folder, changed, images, name or (images.name if images else "real"), debug)

    _or_one_line(score, debug)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="an evaluation's folder, or a run folder")],
    second: Annotated[Path, typer.Argument(help="another one, of the same benchmark and protocol")],
    variant: Annotated[str | None, typer.Option(help="which of their images, by default the adapters'")] = None,
    debug: DebugOption = False,
) -> None:
    """Print the paired differences of two evaluations' scores, first minus second, with 95% intervals.

    Example: dreamcache compare runs/mine runs/mine/evaluation-of-elite
    """

    def difference() -> None:
        from flows.score_tables import compared

        print(compared(first, second, variant))

    _or_one_line(difference, debug)


@app.command()
def report(
    profile: ProfileOption = "miniature",
    run: RunOption = None,
    settings: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Write a run's report again, from what lies in its folder.

    Example: dreamcache report --run runs/demo
    """
    chosen, folder, _ = _configuration(profile, run, settings)

    def write() -> None:
        from flows.report import write_report

        print(f"Report: {write_report(chosen, folder)}")

    _or_one_line(write, debug)


@app.command("attention-map")
def attention_map(
    reference: Annotated[list[Path], typer.Option(help="RGBA cut-out or image on white; several show one subject")],
    prompt: Annotated[str, typer.Option(help="the text of the image")],
    box: Annotated[str, typer.Option(help="left,top,right,bottom in the image's pixels, or x,y for one pixel")],
    out: Annotated[Path, typer.Option(help="the folder to write image.png, maps.png and maps.npz into")],
    adapters: Annotated[Path | None, typer.Option(help="their folder [default: RUN/training/adapters]")] = None,
    seed: Annotated[int, typer.Option(help="the image's seed")] = 0,
    profile: ProfileOption = "miniature",
    run: RunOption = None,
    settings: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Sample an image, and show where in the reference a box of it looks, at each layer.

    Example: dreamcache attention-map --run runs/demo --reference teapot.png --prompt "a teapot on a beach"
    --box 40,40,90,90 --out attention
    """
    chosen, folder, _ = _configuration(profile, run, settings)

    def write() -> None:
        numbers = [int(number) for number in box.split(",")] if re.fullmatch(r"\d+(,\d+){1,3}", box) else []
        if len(numbers) not in (2, 4):
            raise ValueError(f"--box {box!r} is neither left,top,right,bottom nor x,y, in whole pixels")
        left, top, right, bottom = numbers if len(numbers) == 4 else (*numbers, numbers[0] + 1, numbers[1] + 1)
        import torch
        from PIL import Image

        from dreamcache import AdapterSet, load_backbone
        from dreamcache.attention_maps import write_attention_maps

        backbone = load_backbone(chosen.backbone, device="cuda" if torch.cuda.is_available() else "cpu")
        adapter_set = AdapterSet.from_pretrained(adapters or folder / "training" / "adapters", backbone)
        references = [Image.open(path) for path in reference]
        sampling = chosen.evaluation.sampling
        shares = write_attention_maps(
            out, backbone, adapter_set, references, prompt, (left, top, right, bottom), sampling, seed
        )
        print("share of the box's attention that the reference's subject gets, and its share of the area:")
        for layer, (attention, area) in shares.items():
            print(f"  {layer:26} {attention:6.1%} {area:6.1%}")
        print(f"Maps: {out / 'maps.png'}")

    _or_one_line(write, debug)


def _configuration(profile: str, run: Path | None, settings: list[str] | None) -> tuple[Profile, Path, dict[str, Any]]:
    """The profile with its settings changed, and the run folder; wrong names end the program with code 2."""
    try:
        changed = parse_settings(settings or [])
        return load_profile(profile, changed), run or Path("runs") / profile, changed
    except ValueError as error:
        _fail(error, 2)


def _plan_then_run(
    name: str, profile: Profile, run: Path, settings: dict[str, Any], dry_run: bool, debug: bool
) -> None:
    from flows.lock import locked
    from flows.plans import check_inputs, pending

    reasons = pending(name, profile, run)
    if not reasons:
        print(f"All is up to date in {run}.")
    elif dry_run:
        print("\n".join(reasons))
    else:
        check_inputs(name, profile, run)
        with locked(run):  # if another process works there, say so before anything is started
            pass
        print("\n".join(["To do:", *reasons]), flush=True)
        _run_flow(name, profile.name, run, settings, debug)
    if name == "run" and not dry_run:
        print(f"Report: {run / 'report.html'}")


def _score_images(
    profile: Profile, run: Path, settings: dict[str, Any], images: Path | None, name: str, debug: bool
) -> None:
    from flows.lock import locked
    from flows.plans import remaining_scores, scores_folder
    from flows.score_tables import calibration_table, recomputed

    folder, reasons = scores_folder(run, images, name), remaining_scores(profile, run, images, name)
    with locked(run):  # if another process works there, say so before anything is started
        pass
    if reasons:
        print("\n".join(["To do:", *reasons]), flush=True)
        more = {"images": None if images is None else str(images), "name": name}
        _run_flow("evaluate", profile.name, run, settings, debug, **more)
    if images is None:
        print(calibration_table(folder, profile.dino, profile.clip))
    else:
        print(recomputed(folder)[0])
    print(f"Rows: {folder}")


def _run_flow(command: str, profile: str, run: Path, settings: dict[str, Any], debug: bool, **more: Any) -> None:
    started = time.monotonic()
    _quiet_libraries(debug)
    from flows.server import prefect_server

    with prefect_server(run / "prefect", meanwhile=_flows):
        _flows()[command](profile=profile, run=str(run), settings=settings, **more)
    print(f"Done in {time.monotonic() - started:.0f} s.")


def _flows() -> dict[str, Callable[..., Any]]:
    from flows.build_dataset import build_dataset as build
    from flows.evaluate_adapters import evaluate_adapters
    from flows.evaluate_images import evaluate_images
    from flows.pipeline import dreamcache_pipeline
    from flows.train_adapters import train_adapters as train

    importlib.import_module("diffusers")  # with torch, seconds that would be spent later anyway

    return {
        "run": dreamcache_pipeline,
        "build-dataset": build,
        "train-adapters": train,
        "evaluate-adapters": evaluate_adapters,
        "evaluate": evaluate_images,
    }


def _quiet_libraries(debug: bool) -> None:
    """Our own log lines on standard output; of the libraries, errors alone, or with --debug everything."""
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "flows")  # so that the UI shows our lines too
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "DEBUG" if debug else "CRITICAL")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import prefect.main  # noqa: F401  (sets up logging once; our handler is added to what it sets)

    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("flows")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)


def _or_one_line(action: Callable[[], None], debug: bool) -> None:
    """Run an action; an error becomes one line and exit code 1, its traceback shown with --debug alone."""
    try:
        action()
    except KeyboardInterrupt:
        _fail("stopped; start again to go on where it stood", 130)
    except Exception as error:
        if debug:
            raise
        _fail(error, 1)


def _fail(error: object, code: int) -> NoReturn:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Exception) and not isinstance(error, (ValueError, OSError, RuntimeError)):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    print(f"dreamcache: {text}", file=sys.stderr)
    raise SystemExit(code)


def main() -> None:
    """The entry point of `dreamcache`."""
    app()


if __name__ == "__main__":
    main()
