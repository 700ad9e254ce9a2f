"""The console script `dreamcache`; only commands that run flows import Prefect, only stages with models torch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.command import (
    DebugOption,
    DryRunOption,
    JsonOption,
    ProfileOption,
    RunOption,
    SetOption,
    configuration,
    existing_run,
    fail,
    json_apart,
    or_one_line,
    print_json,
    run_flow,
)
from flows.dataset_commands import DATASET_COMMANDS, ON_STORES
from flows.messages import quiet_models
from flows.picture_commands import PICTURE_COMMANDS
from flows.profiles import Profile, changed_settings
from flows.run_commands import RUN_COMMANDS
from shards.run_folder import as_url, local_folder, needs_a_folder, require_buildable, run_folder
from shards.store import place_of

app = typer.Typer(
    name="dreamcache",
    help="Build the dataset, train DreamCache adapters on it, measure them, and personalize images with them."
    "\n\nExample: dreamcache run --run runs/demo"
    '\n\nExample: dreamcache personalize dog.jpg "a dog on a beach" --noun dog --run runs/demo'
    "\n\nExit codes: 0 done, 1 failed or (verify) something is wrong, 2 a wrong name, 130 stopped.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

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
        opened: Callable[[Path], Path] = local_folder
        if name in ("build-dataset", "train-adapters"):
            opened = functools.partial(run_folder, writing=not dry_run)
        chosen, folder, changed = configuration(profile, run, settings, opened)
        or_one_line(lambda: _plan_then_run(name, chosen, folder, changed, dry_run, debug), debug)

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
    chosen, folder, _ = configuration(profile, run, settings)

    def write() -> None:
        from flows.report import write_report

        print(f"Report: {write_report(chosen, folder)}")

    or_one_line(write, debug)


@app.command()
def estimate(
    profile: ProfileOption = "miniature",
    run: RunOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what a dataset will take, stage by stage, from its finished shards; without one, the first is made.

    Example: dreamcache estimate --profile full --run runs/big --set target_triplets=400000
    """
    chosen, folder, changed = configuration(profile, run, settings)

    def tell() -> None:
        from datagen import estimate as reckoning
        from datagen.dataset import Dataset

        require_buildable(folder)
        dataset = Dataset(chosen.dataset, folder)
        if not dataset.finished():
            with json_apart(as_json):
                run_flow("build-dataset", profile, folder, changed, debug, first_only=True)
        lines = reckoning.estimate(dataset)
        if as_json:
            print_json([asdict(line) for line in lines])
        else:
            print(reckoning.table(lines))

    or_one_line(tell, debug)


@app.command()
def verify(
    run: Annotated[Path, typer.Argument(help="the run folder, or its URL on an object store")],
    repair: Annotated[bool, typer.Option("--repair", help="make again what is wrong, and nothing else")] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Check every marker, checksum, count and key of a run; what is wrong is named, one line each, with exit code 1.

    Example: dreamcache verify runs/demo --repair
    """
    folder = existing_run(run, writing=repair)

    def check() -> None:
        from flows.verify import verify_run

        def make_again(command: str, made: Profile) -> None:
            run_flow(command, made.name, folder, changed_settings(made), debug)

        with json_apart(as_json):
            found = verify_run(folder, make_again if repair else None)
        if as_json:
            print_json(found.content())
        if found.lines:
            raise SystemExit(1)

    or_one_line(check, debug)


def _add_plain_command(name: str, action: Callable[..., None]) -> None:
    """A function as a command: its errors are one line, and --debug is added where it does not take that itself."""
    signature = inspect.signature(action, eval_str=True)
    own = {name: one for name, one in signature.parameters.items() if name != "debug"}
    option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=DebugOption)

    @functools.wraps(action)
    def command(*arguments: Any, debug: bool = False, **options: Any) -> None:
        quiet_models(debug)
        if name not in ON_STORES:
            for argument in (*arguments, *options.values()):
                for place in argument if isinstance(argument, list) else [argument]:
                    if isinstance(place, Path) and as_url(place):
                        fail(f"{name}: {needs_a_folder(place)}", 2)
        if "debug" in signature.parameters:
            options["debug"] = debug
        or_one_line(lambda: action(*arguments, **options), debug)

    command.__signature__ = signature.replace(parameters=[*own.values(), option])  # type: ignore[attr-defined]
    app.command(name)(command)


for _name, _action in (*RUN_COMMANDS, *DATASET_COMMANDS, *PICTURE_COMMANDS):
    _add_plain_command(_name, _action)


def _plan_then_run(
    name: str, profile: Profile, run: Path, settings: dict[str, Any], dry_run: bool, debug: bool
) -> None:
    from flows.lock import locked
    from flows.plans import check_inputs, pending

    reasons = pending(name, profile, run)
    if not reasons:
        print(f"All is up to date in {place_of(run)}.")
    elif dry_run:
        print("\n".join(reasons))
    else:
        check_inputs(name, profile, run)
        with locked(run):  # if another process works there, say so before anything is started
            pass
        print("\n".join(["To do:", *reasons]), flush=True)
        run_flow(name, profile.name, run, settings, debug)
    if name == "run" and not dry_run:
        print(f"Report: {run / 'report.html'}")


def main() -> None:
    """The entry point of `dreamcache`."""
    app()


if __name__ == "__main__":
    main()
