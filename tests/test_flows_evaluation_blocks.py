"""Evaluations cut into blocks, of very small models: the bytes of one process, and no image before its references.

The workers are played by the process of the test; real ones are in test_flows_evaluation_workers.py.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from tiny_profile import save_tiny_adapters, tiny_settings
from tiny_triplets import write_tiny_triplets

from flows import evaluation_workers
from flows.dispatch import Workers
from flows.evaluate_adapters import evaluate
from flows.evaluate_block import evaluate_block
from flows.evaluation_plans import COMPARED, TRAINED, adapters_folder, evaluation_of, evaluations, held_out_file
from flows.evaluation_workers import make_on_workers
from flows.plans import evaluation_step
from flows.profiles import Profile, changed_settings, load_profile, record_configuration

pytestmark = pytest.mark.usefixtures("tiny_server")


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """Without masks beside the benchmark's images, two subjects a block."""
    benchmark = tmp_path_factory.mktemp("evaluation") / "benchmark"
    shutil.copytree(tiny_settings()["benchmark"], benchmark)
    for mask in benchmark.glob("*/*.mask.png"):
        mask.unlink()
    changed = {"benchmark": str(benchmark), "compare_with": None, "sweep.text_scales": [], "sweep.image_scales": [0.5]}
    changed |= {"evaluation.prompts": 1}
    workers = {"workers.evaluation": "evaluate-block/gpu", "workers.subjects_per_block": 2}
    return load_profile("miniature", tiny_settings() | changed | workers)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.fixture
def run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: Profile, adapters: Path
) -> Callable[[str], Path]:
    monkeypatch.setattr("flows.plans.training_step", lambda *_: SimpleNamespace(changes=list))

    def make(name: str) -> Path:
        shutil.copytree(adapters, adapters_folder(tmp_path / name))
        record_configuration(tmp_path / name, profile)
        return tmp_path / name

    return make


@flow(name="evaluate-tiny")
def evaluate_tiny(profile: Profile, run: Path) -> None:
    make_on_workers(profile, run)
    for name in evaluations(profile):
        evaluate(profile, run, name)


def bytes_of(run: Path) -> dict[str, bytes]:
    files = [path for suffix in ("tar", "jsonl") for path in run.rglob(f"*.{suffix}")] + [*run.rglob("summary.json")]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def test_blocks_make_the_bytes_of_one_process(
    profile: Profile, run_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, shared, asked = run_folder("alone"), run_folder("shared"), list[dict[str, Any]]()
    here = profile.model_copy(update={"workers": profile.workers.model_copy(update={"evaluation": None})})
    evaluate_tiny(here, alone)

    def made_on_workers(workers: Workers, next_block: Callable[[], Any], so_far: Callable[[], str]) -> Iterator[Any]:
        assert workers.deployment == "evaluate-block/gpu"
        under_way = list[Any]()
        while True:
            while (block := next_block()) is not None:
                under_way.append(block)
            if not under_way:
                break
            done = under_way.pop()  # the last begun is the first to end
            asked.append(done.parameters)
            assert not done.is_made()
            evaluate_block(**workers.parameters, **done.parameters)
            assert done.is_made()
            yield done
        assert so_far() == "5 of 5 blocks finished"

    monkeypatch.setattr(evaluation_workers, "made_on_workers", made_on_workers)
    evaluate_tiny(profile, shared)
    found = bytes_of(shared)
    assert found == bytes_of(alone) and {"evaluation/rows.jsonl", "real/masks/real/00003.tar"} <= found.keys()
    assert found["evaluation/images/adapters/00000.tar"] != found["evaluation/images/wrong-reference/00000.tar"]
    order = [(one["evaluation"], one["references"], one["first"], one["last"]) for one in asked]
    assert order[:2] == [("evaluation", True, 2, 3), ("evaluation", True, 0, 1)]
    assert sorted(order[2:]) == [
        ("evaluation", False, 0, 1),
        ("evaluation", False, 2, 3),
        ("sweep/image-0.5", False, 0, 2),  # two of the four, spread
    ]
    asked.clear()
    evaluate_tiny(profile, shared)
    assert asked == [] and bytes_of(shared) == found


@pytest.mark.parametrize("deployment", ["evaluate-block/gpu", None])
def test_other_adapters_are_compared_without_held_out_triplets(
    deployment: str | None,
    profile: Profile,
    adapters: Path,
    run_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"workers.evaluation": deployment, "training.held_out": 0.0, "compare_with": str(adapters)}
    few = {"evaluation.variants": ["adapters"], "evaluation.subjects": 1, "sweep.image_scales": []}
    compared, run = load_profile("miniature", {**changed_settings(profile), **settings, **few}), run_folder("run")
    write_tiny_triplets(run)

    def made_on_workers(workers: Workers, next_block: Callable[[], Any], so_far: Callable[[], str]) -> Iterator[Any]:
        while (block := next_block()) is not None:
            evaluate_block(**workers.parameters, **block.parameters)
            assert block.is_made()
            yield block

    monkeypatch.setattr(evaluation_workers, "made_on_workers", made_on_workers)
    held_out_file(run).parent.mkdir()
    held_out_file(run).write_text("{}")  # of earlier settings
    evaluate_tiny(compared, run)
    assert (run / COMPARED / "rows.jsonl").is_file() and not held_out_file(run).exists()
    assert [evaluation_step(compared, run, name).changes() for name in (TRAINED, COMPARED)] == [[], []]


def test_a_block_is_of_its_subjects_alone(profile: Profile, run_folder: Callable[[str], Path]) -> None:
    whole = evaluation_of(profile, run_folder("run"), "evaluation")
    parts = [replace(whole, block=numbers) for numbers in (range(0, 1), range(1, 4))]
    assert [[subject.name for subject in part.subjects] for part in parts] == [["cup_0"], ["cup_1", "cup_2", "cat"]]
    assert sorted(plan.path for part in parts for plan in part.plans()) == sorted(plan.path for plan in whole.plans())
    assert parts[0].gallery == whole.gallery
