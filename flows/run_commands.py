"""The commands of `dreamcache` on settings, benchmark, scores and ablations, and the one that shows Prefect's UI."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.command import (
    DryRunOption,
    JsonOption,
    ProfileOption,
    RunOption,
    SetOption,
    configuration,
    fail,
    json_apart,
    print_json,
    run_flow,
    run_option,
)
from flows.profiles import Profile
from flows.settings import setting_text
from flows.ui import ui

if TYPE_CHECKING:
    from flows.given import Given


def evaluate(
    images: Annotated[
        Path | None, typer.Option(help="a folder with an image a case: SUBJECT/PROMPT-POSITION.png")
    ] = None,
    adapters: Annotated[
        str | None, typer.Option(help="adapters that no run trained: a folder, a Hub name, the authors' .pt file")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="real images against real images instead")] = False,
    rows: Annotated[Path | None, typer.Option(help="sum up an evaluation's folder again, from its stored rows")] = None,
    name: Annotated[str | None, typer.Option(help="what the scores are called", show_default="as these")] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="DreamBooth's folder (see fetch-dreambooth), in place of the profile's")
    ] = None,
    profile: ProfileOption = "miniature",
    run: RunOption = None,
    settings: SetOption = None,
    as_json: JsonOption = False,
    debug: bool = False,
) -> None:
    """Score any images or adapters as a run's own, calibrate on the real images, or sum up stored rows again.

    No dataset is needed. Adapters also get a picture of cases drawn by lot.

    Example: dreamcache evaluate --images peers/elite --dataset dreambooth/dataset --profile full --run runs/mine

    Example: dreamcache evaluate --adapters cross_attention-STEP.pt --profile full --run runs/released
    """
    if sum((images is not None, adapters is not None, calibrate, rows is not None)) != 1:
        fail("evaluate needs one of --images FOLDER, --adapters PLACE, --calibrate and --rows FOLDER", 2)
    if name is not None and (calibrate or rows is not None):
        fail("--name is what the scores of --images or --adapters are called: leave it out", 2)
    if dataset is not None and rows is not None:
        fail("--rows sums up stored scores, and needs no --dataset: leave it out", 2)
    given = list(settings or [])
    given += [setting_text("benchmark", str(dataset))] if dataset else []
    chosen, folder, changed = configuration(profile, run, given, of_run=False)
    from flows.given import Given
    from flows.score_tables import calibration, calibration_table, recomputed, summary_table

    if rows is None:
        with json_apart(as_json):
            rows = _score(chosen, folder, changed, Given(str(images) if images else None, adapters, name), debug)
    if calibrate:
        content = calibration(rows, chosen.dino, chosen.clip)
    else:
        content, same = recomputed(rows)
        content |= {"as_stored": same}
    if as_json:
        print_json(content | {"rows": str(rows)})
        return
    print(calibration_table(content) if calibrate else summary_table(content))
    if images or adapters or calibrate:
        print(f"Rows: {rows}")
        if adapters:
            print(f"Gallery: {rows / 'gallery.jpg'}")
    else:
        said = "the same, to the last digit" if content["as_stored"] else "something else: it is not of these rows"
        print(f"summary.json says {said}.")


def _score(profile: Profile, run: Path, settings: dict[str, Any], given: Given, debug: bool) -> Path:
    """Score what is given where that is not up to date; returns the folder of rows."""
    from flows.lock import locked

    reasons = given.remaining(profile, run)
    with locked(run):  # if another process works there, say so before anything is started
        pass
    if reasons:
        print("\n".join(["To do:", *reasons]), flush=True)
        run_flow("evaluate", profile.name, run, settings, debug, **asdict(given))
    return run / given.label


def compare(
    first: Annotated[Path, typer.Argument(help="an evaluation's folder, or a run folder")],
    second: Annotated[Path, typer.Argument(help="another one, of the same benchmark and protocol")],
    variant: Annotated[
        str | None, typer.Option(help="which of their images", show_default="the adapters', or the only ones")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the paired differences of two evaluations' scores, first minus second, with 95% intervals.

    Example: dreamcache compare runs/mine runs/mine/evaluation-of-elite
    """
    from flows.score_tables import compared, comparison_table

    found = compared(first, second, variant)
    if as_json:
        print_json(found)
    else:
        print(comparison_table(found))


def gallery(
    run: Annotated[Path, typer.Argument(help="a run folder whose adapters are evaluated")],
    name: Annotated[str, typer.Option(help="which of its evaluations, such as evaluation-compared")] = "evaluation",
    count: Annotated[int, typer.Option(min=1, help="cases")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="another one draws others")] = 0,
    out: Annotated[Path | None, typer.Option(help="the picture", show_default="RUN/gallery.jpg")] = None,
) -> None:
    """Write cases drawn by lot as one picture: prompt, reference, and images without and with the adapters.

    Example: dreamcache gallery runs/mine --count 40
    """
    from flows.gallery import gallery_sheet
    from flows.profiles import recorded_profile

    profile = recorded_profile(run)
    if profile is None:
        raise FileNotFoundError(f"{run}: there is no run in this folder")
    sheet = out or run / "gallery.jpg"
    gallery_sheet(profile, run, name, count, seed).save(sheet, quality=88, optimize=True)
    print(f"Gallery: {sheet}")


def ablate(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="a row or a table, such as layers or text-in-cache (repeatable)")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="seeds that close rows are trained with, or all of --only")] = 1,
    profile: ProfileOption = "miniature",
    run: RunOption = None,
    settings: SetOption = None,
    dry_run: DryRunOption = False,
    debug: bool = False,
) -> None:
    """Train and evaluate the paper's ablations on a run's triplets, and say which of its findings reproduce.

    Each row is a run folder in RUN/ablations; finished ones stay, and a killed one goes on where it stood. Several of
    these commands at once, one a GPU, share out the rows.

    Example: dreamcache ablate --run runs/mine --only layers --set training.steps=1000 --dry-run
    """
    chosen, folder, changed = configuration(profile, run, settings)
    from flows.ablation_results import write_results
    from flows.ablations import Study
    from flows.lock import locked
    from flows.plans import check_inputs

    study = Study(chosen, folder)
    try:
        rows = study.rows(only or (), repeats)
    except ValueError as error:
        fail(error, 2)
    check_inputs("train-adapters", chosen, folder)
    remaining = {row.name: row.remaining() for row in rows}
    if dry_run:
        for row in rows:
            own = ", ".join(f"{name}={json.dumps(value)}" for name, value in row.settings.items())
            print(f"{row.name} ({own or 'the profile as it is'}): {'; '.join(remaining[row.name]) or 'up to date'}")
        return
    with locked(folder, shared=True):  # if another process works there, say so before anything is started
        pass
    if any(remaining.values()):
        print(f"To do: {sum(map(bool, remaining.values()))} of {len(rows)} rows", flush=True)
        run_flow("ablate", chosen.name, folder, changed, debug, only=only, repeats=repeats)
    else:
        print(f"All is up to date in {folder / 'ablations'}.")
    text = write_results(study)
    print(text.read_text(encoding="utf-8"))
    print(f"Rows: {text.with_name('rows.jsonl')}")


def fetch_dreambooth(
    folder: Annotated[Path, typer.Argument(help="where the dataset is to lie")] = Path("dreambooth/dataset"),
) -> None:
    """Bring DreamBooth's dataset from its public repository, every image compared with its digest; CC BY 4.0.

    The folder is there whole or not at all. Without a network: unpack the repository's archive elsewhere, and name its
    folder dataset by --dataset.

    Example: dreamcache fetch-dreambooth dreambooth/dataset
    """
    from dreamcache.dreambooth import fetch

    print(f"Fetching {fetch.ADDRESS}", flush=True)
    told = time.monotonic()

    def report(size: int) -> None:
        nonlocal told
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{size / 1e6:.0f} MB", flush=True)

    benchmark = fetch.fetch_dreambooth(folder, fetch.ADDRESS, report)
    print(
        f"{folder}: {len(benchmark.subjects)} subjects, {len(benchmark.images)} {benchmark.digests} images, unaltered"
    )


def settings(
    words: Annotated[list[str] | None, typer.Argument(help="only those whose name or meaning has all of them")] = None,
    run: Annotated[Path | None, run_option("as the latest start of this run had them")] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="miniature or full", show_default="RUN's, or miniature")
    ] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the settings that --set takes, with their values and what they mean.

    Example: dreamcache settings images batch --profile full
    """
    from flows.forms import described_settings
    from flows.profiles import recorded_profile

    chosen, _, _ = configuration(profile or "miniature", None, changes, of_run=False)
    if run is not None:
        if changes:
            fail("--run shows settings as they were, --set would change them: give one of the two", 2)
        if (recorded := recorded_profile(run)) is None:
            fail(f"{run} records no settings: it has no config.json", 2)
        if profile not in (None, recorded.name):
            fail(f"{run} is a run of the profile {recorded.name}: leave out --profile", 2)
        chosen = recorded
    found = {
        name: {"value": value, "meaning": meaning}
        for name, (value, meaning) in described_settings(chosen).items()
        if all(word.lower() in f"{name} {meaning}".lower() for word in words or ())
    }
    if not found:
        fail(f"no setting has {' and '.join(words or ())} in its name or meaning", 2)
    if as_json:
        print_json(found)
        return
    for name, one in found.items():
        print(f"{name}={json.dumps(one['value'], ensure_ascii=False)}")
        if one["meaning"]:
            print(f"    {one['meaning']}")


RUN_COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("settings", settings),
    ("evaluate", evaluate),
    ("compare", compare),
    ("gallery", gallery),
    ("ablate", ablate),
    ("fetch-dreambooth", fetch_dreambooth),
    ("ui", ui),
)
