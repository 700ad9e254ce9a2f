"""Training a checkpoint of the miniature by two processes, as torchrun starts them, against one."""

import multiprocessing
import signal
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dreamcache.processes import process_rank
from miniature.train.loop import SEEDS_A_PROCESS, fit

STEPS = 8


def train_line(folder: Path, batches: int = 1, stopped: tuple[int, int] | None = None) -> None:
    """A small regression, each step from `batches` batches at once; `stopped`: in which process and step SIGTERM comes.

    Each process keeps what it has learned in `FOLDER/RANK`.
    """
    torch.manual_seed(process_rank())  # processes that begin apart have to be brought together
    module = nn.Sequential(nn.Linear(4, 20), nn.ReLU(), nn.Linear(20, 1))

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        if (process_rank(), step) == stopped:
            signal.raise_signal(signal.SIGTERM)
        generators = [generator, torch.Generator().manual_seed(step + SEEDS_A_PROCESS)][:batches]
        inputs = torch.cat([torch.randn(8, 4, generator=each) for each in generators])
        return (module(inputs) - inputs.sum(1, keepdim=True)).square().mean()

    folder.mkdir(exist_ok=True)
    saved: list[nn.Module] = []
    with patch("torch.cpu._is_avx512_bf16_supported", return_value=False):  # it rounds a batch unlike its halves
        fit("line", module, loss_at, steps=STEPS, learning_rate=0.1, state_folder=folder, save=saved.append, warmup=2)
    torch.save([module.state_dict(), saved[0].state_dict()], folder / str(process_rank()))


def train_as_one_of_two(folder: Path, rank: int, stopped: tuple[int, int] | None) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=2)
    train_line(folder, stopped=stopped)
    dist.destroy_process_group()


def train_by_two(folder: Path, stopped: tuple[int, int] | None = None) -> list[int | None]:
    """Exit codes of the two processes."""
    Path(f"{folder}.store").unlink(missing_ok=True)
    spawn = multiprocessing.get_context("spawn")  # a fork ends with code 1, its work done, where Prefect ran before
    children = [spawn.Process(target=train_as_one_of_two, args=(folder, rank, stopped)) for rank in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return [child.exitcode for child in children]


def learned(folder: Path, rank: int) -> list[Tensor]:
    return [tensor for state in torch.load(folder / str(rank), weights_only=True) for tensor in state.values()]


@pytest.fixture(scope="module")
def by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes") / "two"
    assert train_by_two(folder) == [0, 0]
    return folder


def test_two_processes_learn_what_one_learns_from_both_batches(tmp_path: Path, by_two: Path) -> None:
    train_line(tmp_path / "one", batches=2)
    for one, *two in zip(learned(tmp_path / "one", 0), *(learned(by_two, rank) for rank in (0, 1)), strict=True):
        assert torch.equal(*two)
        assert torch.allclose(one, two[0], atol=1e-4)
    train_line(tmp_path / "other", batches=1)
    other, two = learned(tmp_path / "other", 0), learned(by_two, 0)
    assert not all(torch.allclose(*pair, atol=1e-2) for pair in zip(other, two, strict=True))


def test_both_stop_when_one_is_asked_to_and_go_on_from_there_exactly(tmp_path: Path, by_two: Path) -> None:
    assert train_by_two(tmp_path / "stopped", (1, 4)) == [143, 143]
    assert torch.load(tmp_path / "stopped" / "line.pt", weights_only=True)["step"] == 5
    assert train_by_two(tmp_path / "stopped") == [0, 0]
    both = (learned(folder, 0) for folder in (by_two, tmp_path / "stopped"))
    assert all(torch.equal(*pair) for pair in zip(*both, strict=True))
