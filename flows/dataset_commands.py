"""The commands of `dreamcache` that look at finished datasets, or make them of others; none of them runs a flow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.command import JsonOption, configuration, existing_run, fail, json_apart, print_json, run_option
from flows.progress import Progress
from shards.run_folder import as_url

RunOption = Annotated[Path, run_option("the run folder to write")]
Sources = Annotated[list[Path], typer.Argument(help="folders or uncompressed tars")]


def import_dataset(
    sources: Sources,
    run: RunOption,
    layout: Annotated[Literal["authors", "pairs", "triplets"], typer.Option(help="how the files are named")],
    profile: Annotated[
        str, typer.Option("--profile", "-p", help="whose models cut out the subjects of pairs")
    ] = "full",
    settings: Annotated[list[str] | None, typer.Option("--set", "-s", help="change a setting of the profile")] = None,
) -> None:
    """Bring another dataset into a run folder of its own; what cannot be taken is rejected under a reason.

    authors: OBJECT/NAME_generation.png, NAME_caption.txt, NAME_mask.png. triplets: KEY.jpg, KEY.mask.png, KEY.json, as
    exported. pairs: NAME.jpg or .png, two squares side by side, and NAME.json with the other columns of Subjects200K;
    each image of a pair becomes a triplet, its subject cut out by the profile's models.

    Example: dreamcache import-dataset downloads/train --layout authors --run runs/authors
    """
    from flows.describe import describe
    from flows.lock import locked
    from shards.imports import import_shards

    chosen, _, _ = configuration(profile, run, settings, of_run=False)
    config = chosen.dataset
    with locked(run):
        paths = import_shards(sources, layout, run, config.captions_per_shard, Progress("imported", "records"))
        if layout == "pairs":
            from datagen.imported import STAGES, ImportedImages

            shown = {stage: Progress(stage, "shards") for stage in STAGES}
            ImportedImages(config, run).make_triplets(len(paths), lambda stage, *at: shown[stage](*at))
        describe(run, chosen if layout == "pairs" else None)
        _tell_accounts(run)


def merge(
    runs: Annotated[list[Path], typer.Argument(help="run folders with finished triplets")], run: RunOption
) -> None:
    """Bring the triplets of several runs into a run folder of their own, to train on all of them.

    Example: dreamcache merge runs/one runs/two --run runs/both
    """
    from flows.describe import describe
    from flows.lock import locked
    from shards.merge import merge_runs

    with locked(run):
        merge_runs(runs, run, Progress("merged", "shards"))
        describe(run)
        _tell_accounts(run)


def export(
    run: Annotated[Path, typer.Argument(help="a run folder with finished triplets")],
    folder: Annotated[Path, typer.Argument(help="the folder to write")],
    push: Annotated[str | None, typer.Option(help="upload to the Hub as this dataset, OWNER/NAME")] = None,
) -> None:
    """Write a run's triplets as a Hugging Face dataset: shards, index, statistics, card; and perhaps upload it.

    A dataset that is new on the Hub starts private there. An upload that broke off goes on when it is started again.

    Example: dreamcache export runs/demo exports/demo --push someone/subject-triplets
    """
    from shards.export import export_dataset

    export_dataset(run, folder, Progress("exported", "shards"))
    print(f"{folder}: a dataset with its card")
    if push is not None:
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(push, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(repo_id=push, folder_path=folder, repo_type="dataset", commit_message="Upload the dataset")
        print(f"https://huggingface.co/datasets/{push}")


def inspect(
    place: Annotated[Path, typer.Argument(metavar="RUN|URL|SHARD", help="a run or a shard of triplets")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="the contact sheet to write: target, mask, reference, caption",
            show_default="RUN/contact-sheet.jpg, SHARD.jpg beside the shard, or ./contact-sheet.jpg of a URL",
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="triplets shown, spread evenly")] = 12,
    as_json: JsonOption = False,
) -> None:
    """Print what is in a dataset and write some of its triplets as one picture.

    Example: dreamcache inspect runs/demo --count 24
    """
    from flows.inspect import statistics_lines, triplets_sheet
    from flows.plans import dataset_accounts
    from shards.statistics import triplet_statistics
    from shards.store import bring
    from shards.triplets import triplet_paths

    shard = place.suffix == ".tar"
    folder = place if shard else existing_run(place)
    paths = [place] if shard else triplet_paths(folder)
    bring(paths)
    if as_url(place):
        out = out or Path("contact-sheet.jpg")
    sheet = out or (place.with_name(f"{place.name}.jpg") if shard else place / "contact-sheet.jpg")
    accounts = {} if shard else dataset_accounts(folder, paths)
    with json_apart(as_json):
        statistics = triplet_statistics(paths, Progress("read", "shards")) | {"stages": accounts}
        triplets_sheet(paths, count).save(sheet, quality=90)
    if as_json:
        print_json(statistics | {"contact_sheet": str(sheet)})
    else:
        print("\n".join(statistics_lines(statistics)))
        print(f"Contact sheet: {sheet}")


def pull(
    url: Annotated[Path, typer.Argument(metavar="URL", help="a run on an object store")],
    folder: Annotated[Path, typer.Argument(help="the run folder to write")],
) -> None:
    """Copy a run from an object store into a local folder, for the commands that need one; goes on where it stood.

    Example: dreamcache pull s3://bucket/runs/big runs/big
    """
    from flows.lock import locked
    from shards.transfer import pull as pull_run

    if as_url(url) is None:
        fail(f"{url} is no URL of a run on an object store, such as s3://bucket/runs/big", 2)
    if as_url(folder) is not None:
        fail(f"{as_url(folder)} is no local folder", 2)
    run = existing_run(url)
    with locked(folder):
        pull_run(run, folder, Progress("pulled", "shards and files"))
    print(f"{folder}: what {as_url(url)} holds")


def _tell_accounts(run: Path) -> None:
    import json

    from flows.inspect import accounts_lines

    statistics = json.loads((run / "triplets" / "statistics.json").read_bytes())
    for line in accounts_lines(statistics["stages"]):
        print(line)
    print(f"{run / 'triplets'}: {statistics['triplets']} triplets in {statistics['shards']} shards")


DATASET_COMMANDS: tuple[tuple[str, Callable[..., None]], ...] = (
    ("import-dataset", import_dataset),
    ("merge", merge),
    ("export", export),
    ("inspect", inspect),
    ("pull", pull),
)
ON_STORES = ("inspect", "pull")  # commands that take a run on an object store
