"""What the commands share: common options, the configuration, errors of one line, JSON apart, the start of a flow."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from flows.messages import TOLD, quiet_libraries
from flows.profiles import Profile, check_profile, load_profile
from flows.settings import parse_settings
from shards.run_folder import local_folder, run_folder
from shards.store import place_of, url_of

ProfileOption = Annotated[str, typer.Option("--profile", "-p", help="miniature (CPU, ships here) or full (GPU)")]


def _place(text: str) -> Path:
    """A path as it was typed; an empty one, as of a shell's unset variable, is refused: it would be the folder here."""
    if not text.strip():
        raise typer.BadParameter("it is empty: name a folder")
    return Path(text)


def run_option(help: str, **more: Any) -> Any:
    """The option --run, -r of any command."""
    return typer.Option("--run", "-r", parser=_place, metavar="PATH", help=help, **more)


RunOption = Annotated[Path | None, run_option("the run folder", show_default="runs/PROFILE")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="change a setting: images.guidance_scale=5.0 (repeatable)")
]
DebugOption = Annotated[bool, typer.Option("--debug", help="show tracebacks and the libraries' messages")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="only say what would be done, and why")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="print JSON alone on standard output; all else goes to standard error")
]

# The settings by which these commands leave to workers what needs torch.
SUBMITTED_BY = {"build-dataset": "workers.deployment", "evaluate-adapters": "workers.evaluation"}


def configuration(
    profile: str,
    run: Path | None,
    settings: list[str] | None,
    opened: Callable[[Path], Path] = local_folder,
    of_run: bool = True,
) -> tuple[Profile, Path, dict[str, Any]]:
    """The profile with its settings changed, and the run folder; wrong names end the program with code 2.

    `opened` gives the folder of a run: by `run_folder` it may be on an object store. Where the profile has to be that
    `of_run`, another one is a wrong name too.
    """
    with _wrong_names_told():
        changed = parse_settings(settings or [])
        chosen, folder = load_profile(profile, changed), opened(run or Path("runs") / profile)
        if of_run:
            check_profile(folder, chosen)
        return chosen, folder, changed


def existing_run(run: Path, writing: bool = False) -> Path:
    """A run folder that is there, or the mirror of one on an object store; else the program ends with code 2."""
    with _wrong_names_told():
        folder = run_folder(run, writing)
    if not folder.is_dir() or (url_of(folder) and not (folder / "config.json").is_file()):
        fail(f"there is no run folder {place_of(folder)}", 2)
    return folder


@contextlib.contextmanager
def _wrong_names_told() -> Iterator[None]:
    """In this block a wrong name ends the program with code 2, and a store that does not answer with code 1."""
    try:
        yield
    except ValueError as error:
        fail(error, 2)
    except RuntimeError as error:
        fail(error, 1)


def run_flow(command: str, profile: str, run: Path, settings: dict[str, Any], debug: bool, **more: Any) -> None:
    """Run a command's flow in this process, against a Prefect server that ends with it unless one is set."""
    started = time.monotonic()
    quiet_libraries(debug)
    from flows.server import prefect_server

    submits = bool(settings.get(SUBMITTED_BY.get(command, "")))  # and the workers need the models
    with prefect_server(run / "prefect", meanwhile=lambda: _flows(torch=not submits)):
        _flows(torch=not submits)[command](profile=profile, run=place_of(run), settings=settings, **more)
    print(f"Done in {time.monotonic() - started:.0f} s.")


def _flows(torch: bool) -> dict[str, Callable[..., Any]]:
    from flows.ablate import ablate_adapters
    from flows.build_dataset import build_dataset as build
    from flows.evaluate_adapters import evaluate_adapters
    from flows.evaluate_given import evaluate_given
    from flows.pipeline import dreamcache_pipeline
    from flows.train_adapters import train_adapters as train

    if torch:
        importlib.import_module("diffusers")  # with torch, seconds that would be spent later anyway
    return {
        "run": dreamcache_pipeline,
        "build-dataset": build,
        "train-adapters": train,
        "evaluate-adapters": evaluate_adapters,
        "evaluate": evaluate_given,
        "ablate": ablate_adapters,
    }


@contextlib.contextmanager
def json_apart(wanted: bool) -> Iterator[None]:
    """Where JSON is wanted, what is said in this block goes to standard error: standard output is for JSON alone."""
    with contextlib.redirect_stdout(sys.stderr) if wanted else contextlib.nullcontext():
        yield


def print_json(content: Any) -> None:
    """Print a command's result as JSON for scripts; NaN is refused with ValueError."""
    print(json.dumps(content, indent=1, allow_nan=False))


def or_one_line(action: Callable[[], None], debug: bool) -> None:
    """Run an action; an error becomes one line and exit code 1, its traceback shown with --debug alone."""
    try:
        action()
    except KeyboardInterrupt:
        fail("stopped; start again to go on where it stood", 130)
    except Exception as error:
        if debug:
            raise
        fail(error, 1)


def fail(error: object, code: int) -> NoReturn:
    """End the program with one line on standard error."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Exception) and not isinstance(error, TOLD):
        text = f"{type(error).__name__}: {text} (--debug shows where)"
    half_a_line = "\r\x1b[K" if sys.stderr.isatty() else ""  # of progress, which the error would else follow
    print(f"{half_a_line}dreamcache: {text}", file=sys.stderr)
    raise SystemExit(code)
