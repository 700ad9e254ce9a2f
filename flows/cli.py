"""The console script `dreamcache`; only commands that run flows import Prefect, only stages with models torch."""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flows.dataset_commands import DATASET_COMMANDS
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
            from flows.server import end_with_parent as end

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
    _or_one_line(lambda: _verify(run, repair, debug), debug)


def _verify(run: Path, repair: bool, debug: bool) -> None:
    from flows.lock import locked
    from flows.profiles import changed_settings
    from flows.verify import Verification

    # What was mended may have come out otherwise than before: then training follows the dataset, evaluation training.
    for rounds_left in (3, 2, 1, 0) if repair else (0,):
        with locked(run) if os.access(run, os.W_OK) else contextlib.nullcontext():
            found = Verification(run)
            for line in (*found.lines, *(f"not checked: {text}" for text in found.unchecked)):
                print(line, flush=True)
            if not found.lines:
                print(f"{run}: every marker, checksum, count and key is right.")
                return
            if rounds_left:
                found.withdraw()
        if rounds_left:
            if found.profile is None:
                raise ValueError(f"{run} was imported or merged: give that command again to make what was withdrawn")
            for command in found.commands():
                _run_flow(command, found.profile.name, run, changed_settings(found.profile), debug)
            if (run / "report.html").is_file():
                from flows.report import write_report

                write_report(found.profile, run)
    raise SystemExit(1)


def _add_dataset_command(name: str, action: Callable[..., None]) -> None:
    @functools.wraps(action)
    def command(*arguments: Any, **options: Any) -> None:
        _or_one_line(lambda: action(*arguments, **options), debug=False)

    app.command(name)(command)


for _name, _action in DATASET_COMMANDS:
    _add_dataset_command(_name, _action)


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


def _run_flow(name: str, profile: str, run: Path, settings: dict[str, Any], debug: bool) -> None:
    started = time.monotonic()
    _quiet_libraries(debug)
    from flows.server import prefect_server

    with prefect_server(run / "prefect", meanwhile=_flows):
        _flows()[name](profile=profile, run=str(run), settings=settings)
    print(f"Done in {time.monotonic() - started:.0f} s.")


def _flows() -> dict[str, Callable[..., Any]]:
    from flows.build_dataset import build_dataset as build
    from flows.evaluate_adapters import evaluate_adapters as evaluate
    from flows.pipeline import dreamcache_pipeline
    from flows.train_adapters import train_adapters as train

    importlib.import_module("diffusers")  # with torch, seconds that would be spent later anyway

    return {"run": dreamcache_pipeline, "build-dataset": build, "train-adapters": train, "evaluate-adapters": evaluate}


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
    if not logger.handlers:  # a repair runs several flows in one process
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
