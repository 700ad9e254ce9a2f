"""The console script `dreamcache`; only commands that run flows import Prefect, only stages with models torch."""

from __future__ import annotations

import functools
import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flows.dataset_commands import DATASET_COMMANDS
from flows.messages import quiet_libraries
from flows.profiles import Profile, changed_settings, load_profile
from flows.run_commands import RUN_COMMANDS
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


@app.command()
def estimate(
    profile: ProfileOption = "miniature",
    run: RunOption = None,
    settings: SetOption = None,
    debug: DebugOption = False,
) -> None:
    """Say what a dataset will take, stage by stage, from its finished shards; without one, the first is made.

    Example: dreamcache estimate --profile full --run runs/big --set target_triplets=400000
    """
    chosen, folder, changed = _configuration(profile, run, settings)

    def tell() -> None:
        from datagen import estimate as reckoning
        from datagen.dataset import Dataset

        dataset = Dataset(chosen.dataset, folder)
        if not dataset.markers("triplets", [0]):
            first = {"shards": 1, "target_triplets": None}
            _run_flow("build-dataset", profile, folder, changed | first, debug)
        print(reckoning.table(reckoning.estimate(dataset)))

    _or_one_line(tell, debug)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="the run folder")],
    repair: Annotated[bool, typer.Option("--repair", help="make again what is wrong, and nothing else")] = False,
    debug: DebugOption = False,
) -> None:
    """Check every marker, checksum, count and key of a run; what is wrong is named, one line each, with exit code 1.

    Example: dreamcache verify runs/demo --repair
    """
    if not run.is_dir():
        _fail(f"there is no run folder {run}", 2)

    def check() -> None:
        from flows.verify import verify_run

        def make_again(command: str, made: Profile) -> None:
            _run_flow(command, made.name, run, changed_settings(made), debug)

        if not verify_run(run, make_again if repair else None):
            raise SystemExit(1)

    _or_one_line(check, debug)


def _add_plain_command(name: str, action: Callable[..., None]) -> None:
    @functools.wraps(action)
    def command(*arguments: Any, **options: Any) -> None:
        _or_one_line(lambda: action(*arguments, **options), debug=False)

    app.command(name)(command)


for _name, _action in (*DATASET_COMMANDS, *RUN_COMMANDS):
    _add_plain_command(_name, _action)


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
    from flows.evaluation_plans import remaining_scores, scores_folder
    from flows.lock import locked
    from flows.score_tables import calibration_table, recomputed

    folder, reasons = scores_folder(run, images, name), remaining_scores(profile, run, images, name)
    with locked(run):  # if another process works there, say so before anything is started
        pass
    if reasons:
        print("\n".join(["To do:", *reasons]), flush=True)
        more = {"images": None if images is None else str(images), "name": name}
        _run_flow("evaluate", profile.name, run, settings, debug, **more)
    print(recomputed(folder)[0] if images else calibration_table(folder, profile.dino, profile.clip))
    print(f"Rows: {folder}")


def _run_flow(command: str, profile: str, run: Path, settings: dict[str, Any], debug: bool, **more: Any) -> None:
    started = time.monotonic()
    quiet_libraries(debug)
    from flows.server import prefect_server

    plans = command == "build-dataset" and bool(settings.get("workers.deployment"))  # and workers need the models
    with prefect_server(run / "prefect", meanwhile=lambda: _flows(torch=not plans)):
        _flows(torch=not plans)[command](profile=profile, run=str(run), settings=settings, **more)
    print(f"Done in {time.monotonic() - started:.0f} s.")


def _flows(torch: bool) -> dict[str, Callable[..., Any]]:
    from flows.build_dataset import build_dataset as build
    from flows.evaluate_adapters import evaluate_adapters
    from flows.evaluate_images import evaluate_images
    from flows.pipeline import dreamcache_pipeline
    from flows.train_adapters import train_adapters as train

    if torch:
        importlib.import_module("diffusers")  # with torch, seconds that would be spent later anyway
    return {
        "run": dreamcache_pipeline,
        "build-dataset": build,
        "train-adapters": train,
        "evaluate-adapters": evaluate_adapters,
        "evaluate": evaluate_images,
    }


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
