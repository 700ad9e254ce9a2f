"""Tiny models, loaded, and a benchmark: all that an evaluation takes."""

import torch
from tiny_diffusion import save_tiny_stable_diffusion
from tiny_embedders import save_tiny_clip, save_tiny_dino, write_tiny_benchmark

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.configs import SamplingConfig
from dreamcache.dreambooth.cases import load_benchmark
from dreamcache.dreambooth.config import EvaluationConfig
from dreamcache.dreambooth.embedders import load_clip, load_dino
from dreamcache.dreambooth.evaluation import Evaluation
from dreamcache.dreambooth.generation import generate_cases
from dreamcache.dreambooth.scoring import embed_cases

CONFIG = EvaluationConfig(images_per_prompt=1, prompts=2, seed=5, sampling=SamplingConfig(steps=2))


class World:
    """Tiny models, loaded, and a benchmark."""

    def __init__(self, folder):
        self.folder = folder
        self.backbone = load_backbone(save_tiny_stable_diffusion(folder / "stable-diffusion"))
        self.adapters = AdapterSet.for_unet(self.backbone.unet)
        torch.manual_seed(0)
        for parameter in self.adapters.parameters():
            parameter.data.add_(0.5 * torch.randn_like(parameter))
        self.dino = load_dino(save_tiny_dino(folder / "dino"))
        self.clip = load_clip(save_tiny_clip(folder / "clip"))
        self.embedders = {"dino": self.dino, "clip": self.clip}
        self.benchmark = load_benchmark(write_tiny_benchmark(folder / "benchmark"))
        self.models = {
            "backbone": self.backbone.identity, "adapters": "a" * 64, "dino": self.dino.identity,
            "clip": self.clip.identity,
        }  # fmt: skip

    def evaluation(self, folder, config=CONFIG, **changes):
        return Evaluation(folder, **{"benchmark": self.benchmark, "config": config, "models": self.models} | changes)

    def run(self, evaluation, reports=None):
        report = None if reports is None else reports.append
        return (
            generate_cases(evaluation, self.backbone, self.adapters, report=report),
            embed_cases(evaluation, self.embedders, report=report),
        )
