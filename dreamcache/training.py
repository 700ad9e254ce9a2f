"""Training the adapters on triplets with the backbone frozen (paper Section 3.3)."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from dreamcache.adapters import AdapterSet
from dreamcache.checkpoints import TrainingLog, load_state, locked_folder, save_state
from dreamcache.configs import TrainingConfig
from dreamcache.objective import batch_cache, training_loss
from dreamcache.processes import copy_from_first_process, mean_over_processes, process_count, process_rank, wait_for_all
from dreamcache.sample_grid import save_sample_grid
from dreamcache.start import start_from_self_attention
from dreamcache.training_data import TrainingData, collate, store_latents
from dreamcache.validation import held_out_triplets, prepare_validation, validation_losses
from shards.markers import checked_marker
from shards.triplets import TripletShards

if TYPE_CHECKING:
    from dreamcache.backbone import Backbone

__all__ = ["TrainingConfig", "train_adapters"]

# Settings that a training may be resumed with other values of: they change no step that was taken, and of later ones,
# as the number of processes, the rounding at most.
_CHANGEABLE = {"steps", "accumulation", "validation_every", "validation_triplets", "checkpoint_every", "samples_every"}
# Reading a loss off a GPU waits for it, so losses are read several steps at a time.
_LOG_EVERY = 10
# References that a start from the self-attention looks at, and how many at a time.
_START_ROWS, _START_BATCH = 64, 8
# Rows of a sample grid.
_SAMPLES = 4


def train_adapters(
    backbone: "Backbone",
    shard_paths: Sequence[str | Path],
    config: TrainingConfig,
    folder: str | Path,
    report: Callable[[dict[str, Any]], None] | None = None,
    *,
    workers: int = 0,
) -> Path:
    """Train adapters on triplet shards, resuming exactly what `folder` holds, and return the adapters' folder.

    `folder` gets `adapters/` (what `AdapterSet.from_pretrained` reads), `state/` (weights, optimizer, average, step,
    and the seconds of all processes and starts), `log.csv` (step, loss, lr, validation_right, validation_wrong,
    validation_none) and `samples/` (grids by step). All randomness is a function of (seed, epoch, position), so resumed
    training equals uninterrupted training, on the CPU bit for bit, and where torch.distributed is initialized, its
    processes share each batch out and learn from the same rows, noise and timesteps as one alone. `report` gets
    {"encoded", "triplets"} while latents are stored, then {"step", "steps", "loss", "lr", "samples_per_second"} every
    few steps, with the validation losses where there are any. `workers` processes read the data.
    ValueError if the folder was begun with other settings, triplets or backbone, if another process trains in it, if
    the batch cannot be shared out or does not fit into memory, or if the loss is no longer a number; FileNotFoundError
    for unfinished shards.
    """
    folder, started = Path(folder), time.monotonic()
    backbone.require_dtype(config.dtype, "training")
    if config.batch_size % (config.accumulation * process_count()):
        parts = f"{config.accumulation} accumulated parts on {process_count()} processes"
        raise ValueError(f"batch_size {config.batch_size} does not divide into {parts}: change one of them")
    with locked_folder(folder) if process_rank() == 0 else nullcontext():
        shards = TripletShards(list(shard_paths))
        identity = _identity(backbone, shards, config)
        state = load_state(folder / "state" / "training.pt")
        if state is not None:
            _check_resumable(state["identity"], identity, folder)
            if state["step"] > config.steps:
                raise ValueError(f"{folder} has trained {state['step']} steps, more than {config.steps}: use another")
            if state["step"] == config.steps:
                if process_rank() == 0:  # the adapters may have been altered or removed since; the state is whole
                    _write_adapters(backbone, config, state, folder)
                wait_for_all()
                return folder / "adapters"
        _fresh_adapters(backbone, config)  # what is wrong with their settings is told before all is encoded
        stored = store_latents(backbone, shards, config, report) if config.store_latents else None
        data = TrainingData(shards, config, backbone, stored)
        _Training(backbone, data, config, folder, identity, state, report, started).run(workers)
        wait_for_all()
    return folder / "adapters"


class _Training:
    """One training between start, or resumption, and end."""

    def __init__(
        self, backbone: "Backbone", data: TrainingData, config: TrainingConfig, folder: Path,
        identity: dict[str, Any], state: dict[str, Any] | None, report: Callable[[dict[str, Any]], None] | None,
        started: float,
    ) -> None:  # fmt: skip
        self.backbone, self.data, self.config, self.folder = backbone, data, config, folder
        self.identity, self.report = identity, report
        self.adapters = _fresh_adapters(backbone, config)
        self.null_text = backbone.encode_prompts([""])
        if state is None and config.start == "self-attention":
            self._start_from_self_attention()
        self.average = None
        if config.ema_decay is not None:
            self.average = _fresh_adapters(backbone, config).requires_grad_(False)
            self.average.load_state_dict(self.adapters.state_dict())
        # Decay would draw the projection away from [I | 0], which is no prior, as it is for the attention's weights.
        decayed = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.weight")
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, parameter in self.adapters.named_parameters():
            groups[name.endswith(decayed)].append(parameter)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": groups[True], "weight_decay": config.weight_decay},
                {"params": groups[False], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )
        self.step = 0
        if state is not None:
            self.step = int(state["step"])
            self.adapters.load_tensors(state["adapters"], "the training state")
            self.optimizer.load_state_dict(state["optimizer"])
            if self.average is not None:
                self.average.load_tensors(state["average"], "the training state")
        self.seconds = 0.0 if state is None else float(state.get("seconds", 0.0))
        self.counted_at = started
        self.pending: list[tuple[int, Tensor, Tensor, float]] = []
        self.logged_at = time.monotonic()
        # One of several processes writes and looks at held-out triplets; the others only work.
        self.leads = process_rank() == 0
        if self.leads:
            self.log = TrainingLog(folder / "log.csv", self.step)
        held_out = held_out_triplets(data.shards, config.held_out, config.validation_triplets) if self.leads else []
        self.validation = None
        if len(held_out) > 1:
            self.validation = prepare_validation(backbone, held_out, self.adapters, config.loss_weights)
        self.shown = held_out[:_SAMPLES]

    def run(self, workers: int) -> None:
        config = self.config
        part = config.batch_size // config.accumulation
        share = part // process_count()
        starts = range(self.step * config.batch_size, config.steps * config.batch_size, part)
        rows = ([start + process_rank() * share + row for row in range(share)] for start in starts)
        batches = iter(DataLoader(
            self.data, batch_sampler=rows, num_workers=workers, collate_fn=collate,
            pin_memory=self.backbone.device.type == "cuda",
        ))  # fmt: skip
        while self.step < config.steps:
            lr = config.learning_rate * min(1.0, (self.step + 1) / (config.warmup_steps + 1))
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            total = torch.zeros((), device=self.backbone.device)
            for _ in range(config.accumulation):
                total += self._accumulate(next(batches))
            gradients = [parameter.grad for parameter in self.adapters.parameters() if parameter.grad is not None]
            mean_over_processes([total, *gradients])
            norm = torch.nn.utils.clip_grad_norm_(self.adapters.parameters(), config.max_grad_norm or math.inf)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            self._update_average()
            if not self.leads:
                continue
            self.pending.append((self.step, total, norm, lr))
            last = self.step == config.steps
            validate = self.validation is not None and (last or self.step % config.validation_every == 0)
            checkpoint = last or self.step % config.checkpoint_every == 0
            if validate or checkpoint or len(self.pending) == _LOG_EVERY:
                self._write_log(self._validate() if validate else {})
            if config.samples_every and self.shown and (last or self.step % config.samples_every == 0):
                grid = self.folder / "samples" / f"{self.step:08d}.png"
                save_sample_grid(self.backbone, self.average or self.adapters, self.shown, grid)
            if checkpoint:
                self._save()

    def _start_from_self_attention(self) -> None:
        firsts = range(0, _START_ROWS, _START_BATCH)
        batches = (collate([self.data[first + row] for row in range(_START_BATCH)]) for first in firsts)
        caches = (batch_cache(self.backbone, self.adapters, batch, self.null_text) for batch in batches)
        start_from_self_attention(self.backbone.unet, self.adapters, caches)
        copy_from_first_process(self.adapters.parameters())

    def _accumulate(self, batch: dict[str, Any]) -> Tensor:
        try:
            return self._backward(batch)
        except torch.OutOfMemoryError:
            pass  # what the failed pass holds is let go only here, where its traceback is gone
        rows = self.config.batch_size // process_count()
        for fits in range(len(batch["timestep"]) - 1, 0, -1):
            if rows % fits == 0:
                try:
                    self._backward({name: values[:fits] for name, values in batch.items()})
                except torch.OutOfMemoryError:
                    continue
                advice = f"{fits} fit: set accumulation to {rows // fits}, with the same batch_size"
                break
        else:
            advice = "nor does one: use bfloat16, a smaller backbone or a larger GPU"
        raise ValueError(f"{len(batch['timestep'])} triplets at a time do not fit into memory, {advice}")

    def _backward(self, batch: dict[str, Any]) -> Tensor:
        loss = training_loss(self.backbone, self.adapters, batch, self.null_text, self.config.loss_weights)
        loss = loss / self.config.accumulation
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        if self.average is None or self.config.ema_decay is None:
            return
        # The average starts at the fresh adapters; a decay that grows with the steps lets it forget them.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, parameter in zip(self.average.parameters(), self.adapters.parameters(), strict=True):
            mean.lerp_(parameter, 1 - decay)

    def _validate(self) -> dict[str, float]:
        assert self.validation is not None
        losses = validation_losses(self.backbone, self.average or self.adapters, self.validation)
        return {f"validation_{name}": float(values.mean()) for name, values in losses.items()}

    def _write_log(self, validation: dict[str, float]) -> None:
        rows: list[dict[str, Any]] = []
        for step, loss, norm, lr in self.pending:
            for name, value in (("loss", float(loss)), ("gradients' norm", float(norm))):
                if not math.isfinite(value):
                    advice = "lower learning_rate, which begins anew (what was saved stays)"
                    raise ValueError(f"the {name} is {value} at step {step}: {advice}")
            rows.append({"step": step, "loss": float(loss), "lr": lr})
        self.pending.clear()
        rows[-1] |= validation
        self.log.append(rows)
        if self.report is not None:
            now = time.monotonic()
            speed = len(rows) * self.config.batch_size / max(now - self.logged_at, 1e-9)
            self.report({**rows[-1], "steps": self.config.steps, "samples_per_second": speed})
        self.logged_at = time.monotonic()

    def _save(self) -> None:
        now = time.monotonic()
        self.seconds += (now - self.counted_at) * process_count()
        self.counted_at = now
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "identity": self.identity,
            "adapters": self.adapters.tensors(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.tensors(),
        }
        (self.average or self.adapters).save_pretrained(self.folder / "adapters")
        save_state(self.folder / "state" / "training.pt", state)


def _fresh_adapters(backbone: "Backbone", config: TrainingConfig) -> AdapterSet:
    backbone.require_timestep(config.adapters.cache_timestep)
    settings = {"backbone_identity": backbone.identity, "seed": config.seed, **config.adapters.model_dump()}
    return AdapterSet.for_unet(backbone.unet, **settings)


def _write_adapters(backbone: "Backbone", config: TrainingConfig, state: dict[str, Any], folder: Path) -> None:
    """Write a training's adapters, or their moving average if it has one, out of its state."""
    adapters = _fresh_adapters(backbone, config)
    adapters.load_tensors(state["average"] or state["adapters"], "the training state")
    adapters.save_pretrained(folder / "adapters")


def _identity(backbone: "Backbone", shards: TripletShards, config: TrainingConfig) -> dict[str, Any]:
    """What must be the same when a training is resumed."""
    checksums = [checked_marker(path).shard.sha256 for path in shards.paths]
    return {
        "settings": {name: value for name, value in config.content().items() if name not in _CHANGEABLE},
        "triplets": hashlib.sha256("\n".join(checksums).encode()).hexdigest(),
        "backbone": backbone.identity,
    }


def _check_resumable(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    settings = {**before["settings"], **now["settings"]}
    changes = [
        f"{name} was {before['settings'].get(name)!r} and is {now['settings'].get(name)!r}"
        for name in settings
        if before["settings"].get(name) != now["settings"].get(name)
    ]
    others = {"triplets": "the triplets are others", "backbone": "the backbone is another"}
    changes += [text for name, text in others.items() if before[name] != now[name]]
    if changes:
        raise ValueError(
            f"the training in {folder} cannot go on: {', '.join(changes)}; use a new folder, or move this one away"
        )
