"""The flow that makes the shards of one block of an evaluation's subjects, on a worker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.states import State

from flows.block_runs import block_run
from flows.evaluation import adapter_models, make_references, make_scored_shards, write_held_out_loss
from flows.evaluation_plans import adapters_of, evaluation_of, held_out_inputs
from flows.profiles import load_profile


@flow(name="evaluate-block")
def evaluate_block(
    profile: str, run: str, settings: dict[str, Any], evaluation: str, first: int, last: int, references: bool
) -> State[Any] | None:
    """Make what is dear of some subjects of an evaluation, each model loaded once; evaluate-adapters submits this.

    Args:
        profile: "miniature" or "full".
        run: the run folder, under the path that it has on every machine.
        settings: dotted settings that differ from the profile's.
        evaluation: which of the run's evaluations, such as "evaluation" or "sweep/image-0.4".
        first: the number of the block's first subject in the benchmark's table.
        last: the number of its last subject.
        references: only the masks of real images, which have to be there before any image is sampled.
    """

    def make(folder: Path) -> None:
        chosen = load_profile(profile, settings)
        whole = evaluation_of(chosen, folder, evaluation)
        block = replace(whole, block=range(first, last + 1))
        if references:
            make_references(block, chosen, evaluation)
            return
        models = adapter_models(chosen, adapters_of(chosen, folder, evaluation))
        make_scored_shards(block, chosen, evaluation, models)
        if whole.subjects[0] in block.subjects and held_out_inputs(chosen, folder, evaluation):
            write_held_out_loss(chosen, folder, models)

    return block_run(run, f".{evaluation.replace('/', '-')}-{first:05d}.lock", make)
