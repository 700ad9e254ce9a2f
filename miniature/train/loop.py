"""One training loop for every checkpoint: seeded steps, EMA, atomic state, resume, progress."""

import copy
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
from torch import Tensor, nn

from dreamcache.processes import copy_from_first_process, mean_over_processes, process_rank
from miniature.train.arithmetic import fast_arithmetic
from miniature.train.optimizers import Optimizers

SEEDS_A_PROCESS = 100_000_007  # between the seeds of two processes; a generator on the CPU reads 32 bits of a seed
STATE_EVERY_SECONDS = 120.0
REPORT_EVERY_SECONDS = 15.0


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random generator of one step of this process: a function of seed and step, so that resumption is exact."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step + process_rank() * SEEDS_A_PROCESS)


def learning_rate_at(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear warm-up, then a cosine from `peak` down to a hundredth of it at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def fit(
    name: str,
    module: nn.Module,
    loss_at: Callable[[int, torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    state_folder: Path,
    save: Callable[[nn.Module], None],
    weight_decay: float = 0.01,
    warmup: int = 100,
    ema_decay: float = 0.999,
    seed: int = 0,
) -> nn.Module:
    """Trains `module` by `loss_at(step, generator)` and returns its exponential moving average.

    The state (weights, average, optimizer, step) goes to `state_folder/NAME.pt` every two minutes and at the
    end, by temporary file and rename; a later call continues from it. `save` gets the average at the end, and
    also on SIGTERM, after which the process leaves with exit code 143. A loss that is not finite stops the
    training with a FloatingPointError and leaves the last state as it was. Where torch.distributed is initialized,
    each process has a batch of its own, all learn from the mean of their gradients, and the first one writes. Where
    all steps are done and saved nothing is done: a newer checkpoint may have taken this one's place.
    """
    copy_from_first_process(module.state_dict().values())
    average = copy.deepcopy(module).eval().requires_grad_(False)
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = Optimizers(module, learning_rate, weight_decay)
    state_file, saved = state_folder / f"{name}.pt", state_folder / f"{name}.saved"
    first = 0
    if state_file.exists():
        state = torch.load(state_file, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        if first >= steps and saved.exists():
            print(f"{name}: all {first} steps are done; for more, raise --steps, or remove {state_file}", flush=True)
            return average
        print(f"{name}: resumed at step {first} of {steps}", flush=True)

    def write_state(step: int) -> None:
        if process_rank():
            return
        state_folder.mkdir(parents=True, exist_ok=True)
        saved.unlink(missing_ok=True)
        temporary = state_file.with_suffix(".tmp")
        torch.save(
            {
                "module": module.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            },
            temporary,
        )
        os.replace(temporary, state_file)

    stopped = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopped
        stopped = True

    previous_handler = signal.signal(signal.SIGTERM, stop)
    module.train()
    started = last_report = last_state = time.monotonic()
    recent: list[float] = []
    try:
        for step in range(first, steps):
            with fast_arithmetic(next(module.parameters()).device):
                loss = loss_at(step, step_generator(seed, step))
            loss.backward()
            said = torch.tensor([float(loss.detach()), float(stopped)], device=loss.device)
            mean_over_processes([said, *(parameter.grad for parameter in trainable if parameter.grad is not None)])
            value, leaving = said.tolist()
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name}: the loss at step {step} is {value}; lower the learning rate and resume"
                )
            nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step(learning_rate_at(step, steps, learning_rate, warmup))
            update_average(average, module, min(ema_decay, (step + 1) / (step + 10)))
            recent.append(value)
            now = time.monotonic()
            if process_rank() == 0 and (now - last_report > REPORT_EVERY_SECONDS or step == steps - 1):
                pace = (now - started) / (step + 1 - first)
                remaining = pace * (steps - step - 1) / 60
                print(
                    f"{name} step {step + 1}/{steps}  loss {sum(recent) / len(recent):.4f}  "
                    f"{pace:.2f} s/step  {remaining:.0f} min left",
                    flush=True,
                )
                last_report, recent = now, []
            if now - last_state > STATE_EVERY_SECONDS or step == steps - 1 or leaving:
                write_state(step + 1)
                last_state = now
            if leaving:
                save(average)
                raise SystemExit(143)
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
    save(average)
    if process_rank() == 0:
        saved.touch()
    return average


@torch.no_grad()
def update_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Moves each tensor of `average` towards that of `module` by 1 - `decay`; integer buffers are copied."""
    seen = set()
    for old, new in zip(average.state_dict().values(), module.state_dict().values(), strict=True):
        if old.data_ptr() in seen:
            continue  # tied to one before, and moved with it
        seen.add(old.data_ptr())
        if old.is_floating_point():
            old.lerp_(new, 1.0 - decay)
        else:
            old.copy_(new)
