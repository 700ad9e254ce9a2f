import io
import itertools
import re
import time
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_diffusion import save_tiny_stable_diffusion
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import kept_memory, sampling, table3, training
from benchmarks.backbones import random_sd15
from benchmarks.ip_adapter import ip_adapter
from benchmarks.lora import _add_lora
from benchmarks.timing import median_ratio, paired_seconds
from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.cache import DEFAULT_LAYERS, FeatureCache, cache_reference, reference_features
from dreamcache.conditioning import conditioned
from dreamcache.objective import training_loss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_stable_diffusion(tmp_path_factory.mktemp("benchmarks") / "sd")


@pytest.fixture(scope="module")
def backbone(folder):
    return load_backbone(folder)


@pytest.fixture
def seconds(monkeypatch) -> dict[str, float]:
    """What benchmarks are told that cases took, 1 s if nothing is said here; each case runs once."""
    said: dict[str, float] = {}

    def run_once(cases, rounds, device, around=None):
        for name, case in cases.items():
            with (around or {}).get(name, nullcontext)():
                case()
        return {name: [said.get(name, 1.0)] * rounds for name in cases}

    for module in (kept_memory, sampling, table3, training):
        monkeypatch.setattr(module, "paired_seconds", run_once)
    return said


def test_cases_run_by_turns_and_ratios_pair_rounds():
    order: list[str] = []
    cases = {"a": lambda: (order.append("a"), time.sleep(0.02)), "b": lambda: order.append("b")}
    seconds = paired_seconds(cases, 3, CPU)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert len(seconds["a"]) == len(seconds["b"]) == 3 and median_ratio(seconds, "a", "b") > 2
    assert median_ratio({"x": [1.0, 4.0, 9.0], "y": [1.0, 2.0, 3.0]}, "x", "y") == 2.0
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        paired_seconds(cases, 0, CPU)


def test_sampling_compares_equal_branches(folder, capsys, seconds):
    seconds |= {"joint, conditioned": 2.0, "joint, IP-Adapter": 1.5, "one U-Net pass": 2.0, "entering": 0.25}
    seconds |= {"combined, plain": 2.0, "combined, conditioned": 3.0}
    assert sampling.main([str(folder), "--device", "cpu", "--steps", "2", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    for name, ratio, added in (
        ("joint, plain", "1.000", "0.0"),
        ("combined, plain", "1.000", "0.0"),
        ("joint, conditioned", "2.000", "500.0"),
        ("combined, conditioned", "1.500", "500.0"),
        ("joint, IP-Adapter", "1.500", "250.0"),
    ):
        assert re.search(rf"{name} .* {re.escape(ratio)} +{re.escape(added)} ms", out), out
    assert re.search(r"caching, the U-Net's part +1\.0000 s +0\.500", out), out
    assert "Conditioned includes 250.0 ms once a batch" in out


def test_kept_memory_is_measured_in_processes_by_turns(folder, capsys, monkeypatch, seconds):
    asked: list[str] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:  # in this process: two others would take long to start
        asked.append(command[-1])
        seconds["U-Net pass of 2 rows"] = {"kept": 1.0, "given back": 4.0}[command[-1]]
        with redirect_stdout(io.StringIO()) as said:
            assert kept_memory.main(command[3:]) == 0
        return SimpleNamespace(stdout=said.getvalue())

    monkeypatch.setattr("subprocess.run", run)
    assert kept_memory.main([str(folder), "--rows", "2", "--passes", "1", "--rounds", "2"]) == 0
    assert asked == ["given back", "kept", "kept", "given back"]
    out = capsys.readouterr().out
    assert re.search(r"^U-Net pass of 2 rows +1\.000 s +4\.000 s +0\.25", out, re.MULTILINE), out
    for case in ("forward and backward pass of 2 rows", "decoding of 2 images"):
        assert re.search(rf"{case} +1\.000 s +1\.000 s +1\.00", out), out


@torch.no_grad()
def test_plain_cases_are_plain_and_ip_adapter_is_taken_out_again(backbone):
    adapters = AdapterSet.for_unet(backbone.unet)
    torch.manual_seed(1)
    for parameter in adapters.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    cache = cache_reference(backbone, torch.zeros(1, 3, 64, 64))
    plain, personalized = (
        sampling.sampling_case(backbone, adapters, cache, "joint", strength, 1, 1) for strength in (0.0, 1.0)
    )
    before = plain()
    assert not torch.equal(personalized(), before)
    installed = ip_adapter(backbone.unet)
    with installed():
        assert not torch.allclose(plain(), before)
    assert torch.equal(plain(), before)


def test_lcm_and_compiled_sampling_are_measured(backbone, capsys, monkeypatch, seconds):
    seconds["conditioned"] = 4.0
    compiled = []
    # Compiling takes minutes; that it changes no result is tested beside `conditioned`.
    monkeypatch.setattr(backbone.unet, "compile", lambda: compiled.append(True))
    adapters = AdapterSet.for_unet(backbone.unet)
    cache = cache_reference(backbone, torch.zeros(1, 3, 64, 64))
    sampling.measure_lcm(backbone, adapters, cache, 1)
    sampling.measure_compiled(backbone, adapters, cache, 1, 1, 1)
    assert compiled
    out = capsys.readouterr().out
    assert re.findall(r"^conditioned +([\d.]+)(?: s)? +([\d.]+)", out, re.MULTILINE) == [
        ("4.0000", "4.000"),
        ("0.250", "4.000"),
    ]


def test_table3_says_what_it_extrapolates(folder, capsys, monkeypatch, seconds):
    halves = itertools.count(0, 0.5)
    monkeypatch.setattr(table3, "time", SimpleNamespace(perf_counter=lambda: next(halves)))  # half a second a step
    seconds |= {"caching": 3.0, "plain": 1.5, "joint": 2.0, "combined": 2.5}
    assert table3.main([str(folder), "--device", "cpu", "--steps", "3", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "EXTRAPOLATED: 3 steps were measured, the other 97" in out
    for name, row in (
        ("plain", "2 - 50.000 s 50.000 s"),
        ("joint", "2 3.000 s 50.500 s 53.500 s"),
        ("combined", "3 3.000 s 51.000 s 54.000 s"),
    ):
        assert f"{name} {row}" in re.sub(" +", " ", out), out
    with pytest.raises(SystemExit):
        table3.main([str(folder), "--device", "cpu", "--steps", "101"])
    assert "--steps must be 2 to 100, not 101" in capsys.readouterr().err


def test_training_measures_four_loops(folder, capsys, seconds):
    loops = (training.STORED, training.ONLINE, training.BASELINE, training.LORA)
    seconds |= dict(zip(loops, (0.001, 0.002, 0.004, 0.0005), strict=True))
    assert training.main([str(folder), "--device", "cpu", "--batch-size", "2", "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    rows = {name: re.search(rf"^{re.escape(name)} +(.*)", out, re.MULTILINE)[1].split() for name in loops}
    speed, ratio, tflop, share = (
        {name: float(row[column].removesuffix("%")) for name, row in rows.items()} for column in range(4)
    )
    assert list(speed.values()) == [2000, 1000, 500, 4000] and list(ratio.values()) == [1, 2, 4, 0.5]
    # Encoding the reference costs something, and stopping nowhere costs more than stopping early.
    assert tflop[training.STORED] < tflop[training.ONLINE] and tflop[training.STORED] < tflop[training.BASELINE]
    peak = float(re.search(r"TFLOP/s here, ([\d.e-]+) in float32", out)[1])
    assert all(share[name] == pytest.approx(100 * speed[name] * tflop[name] / peak, rel=0.02, abs=1) for name in loops)


def test_loops_that_are_compared_have_the_same_loss(backbone, tmp_path):
    shard = training.drawn_shard(tmp_path, backbone.image_size, 4)
    batch = next(training.training_batches(backbone, shard, True, 2, 0))
    adapters, null_text = AdapterSet.for_unet(backbone.unet), backbone.encode_prompts([""])
    ours = training_loss(backbone, adapters, batch, null_text)
    whole = training.loss_without_early_stops(backbone, adapters, batch, null_text)
    of_lora, parameters, _ = training.lora_loss(backbone)
    assert whole.item() == pytest.approx(ours.item(), rel=1e-5)
    # Fresh adapters and a fresh LoRA both leave the backbone's prediction as it is.
    assert of_lora(batch).item() == pytest.approx(ours.item(), rel=1e-5)
    of_lora(batch).backward()
    assert parameters and all(parameter.grad is not None for parameter in parameters)


@torch.no_grad()
def test_sd15_keeps_the_speed_promises_in_arithmetic():
    backbone = random_sd15(torch.device("meta"), torch.float32)
    unet = backbone.unet
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    latents, text = backbone.encode_images(torch.zeros(1, 3, 512, 512)), backbone.encode_prompts(["a teapot"])
    assert (latents.shape, text.shape) == ((1, 4, 64, 64), (1, 77, 768))
    at = torch.ones(3, dtype=torch.int64, device="meta")

    def flops(case) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            case()
        return counter.get_total_flops()

    def three_branches() -> None:
        unet(latents.expand(3, -1, -1, -1), at, text.expand(3, -1, -1))

    one_pass = flops(lambda: unet(latents, at[:1], text))
    cached = flops(lambda: reference_features(backbone, latents, latents, DEFAULT_LAYERS, text))
    cache = FeatureCache(reference_features(backbone, latents, latents, DEFAULT_LAYERS, text))
    with conditioned(unet, AdapterSet.for_unet(unet), cache, torch.tensor([1.0, 1.0, 0.0])):
        personalized = flops(three_branches)
    assert one_pass == pytest.approx(0.8e12, rel=0.02)
    assert cached < 0.9 * one_pass and 1.0 < personalized / flops(three_branches) < 1.035
    # Rank 4 in 32 attentions: what diffusers' script trains on this U-Net.
    assert sum(parameter.numel() for parameter in _add_lora(unet)) == 797_184


def test_what_cannot_be_measured_is_named(folder, capsys, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        sampling.main([str(tmp_path / "nothing"), "--device", "cpu"])
    assert stopped.value.code == 2 and "no Stable Diffusion in" in capsys.readouterr().err
    for words, message in (
        (["--device", "abacus"], "no such device"),
        (["--rounds", "0"], "rounds must be at least 1"),
    ):
        with pytest.raises(SystemExit) as stopped:
            sampling.main([str(folder), "--steps", "1", *words])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        training.main(["--help"])
    assert "default: 1, 8 on a GPU" in capsys.readouterr().out
