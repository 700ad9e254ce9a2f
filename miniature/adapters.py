"""`python -m miniature.adapters RUN`: ships a run's trained adapters, in half precision and with a card."""

import argparse
import csv
import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from dreamcache.configs import TrainingConfig
from miniature.train.workspace import CHECKPOINTS

SETTINGS = (
    "start", "learning_rate", "min_snr_gamma", "subject_weight", "reference_variants", "ema_decay", "held_out", "dtype",
)  # fmt: skip
CARD = """# Adapters of the miniature

DreamCache adapters for the miniature's Stable Diffusion, trained by the project's own flows on a dataset that they
built. The demo's report shows them beside those that it has just trained.

- Dataset: {triplets} triplets; `dreamcache build-dataset` with {dataset}.
- Conditioned layers: {layers}.
- Training: {steps} steps of {batch_size} triplets; `dreamcache train-adapters` with {training}.
- Loss, weighted as in training, on held-out triplets, at most {held_out}, at fixed noise and timesteps:
  right reference {right:.5f}, wrong reference {wrong:.5f}, no reference {none:.5f}.
- Weights in half precision; training and sampling read them as float32.
"""


def publish(run: Path, checkpoints: Path) -> Path:
    """Write `checkpoints/adapters` from the adapters in a run folder; returns it.

    FileNotFoundError for a run without finished adapters or without held-out losses.
    """
    trained, folder = run / "training", checkpoints / "adapters"
    with (trained / "log.csv").open(newline="") as file:
        validated = [row for row in csv.DictReader(file) if row["validation_right"]]
    if not validated:
        raise FileNotFoundError(f"{trained} has no held-out losses yet")
    last = validated[-1]
    dataset = json.loads((run / "config.json").read_text())["dataset"]
    # The run's configuration is that of its latest start, which may have been an evaluation with other settings.
    recipe = json.loads((trained / "done.json").read_text())["recipe"]
    training = TrainingConfig.model_validate(recipe["settings"]).model_dump()
    counts = [json.loads(file.read_text())["records_out"] for file in sorted((run / "triplets").glob("*.done.json"))]
    weights = load_file(trained / "adapters" / "adapters.safetensors")
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half().contiguous() for name, tensor in weights.items()}, folder / "adapters.safetensors")
    (folder / "config.json").write_bytes((trained / "adapters" / "config.json").read_bytes())
    said = {
        "dataset": f"{dataset['shards']} shards of {dataset['captions_per_shard']} captions, "
        f"images of each: {dataset['images_per_caption']}, "
        f"in {dataset['images']['steps']} steps and {dataset['images']['dtype']}",
        "layers": ", ".join(training["adapters"]["layers"]),
        "training": ", ".join(f"{name} {training[name]}" for name in SETTINGS),
    }
    losses = {name: float(last[f"validation_{name}"]) for name in ("right", "wrong", "none")}
    (folder / "README.md").write_text(CARD.format(
        triplets=sum(counts), steps=last["step"], batch_size=training["batch_size"],
        held_out=training["validation_triplets"], **said, **losses,
    ))  # fmt: skip
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m miniature.adapters", description=__doc__)
    parser.add_argument("run", type=Path, help="a run folder with trained adapters")
    parser.add_argument("--checkpoints", type=Path, default=CHECKPOINTS)
    arguments = parser.parse_args()
    print(publish(arguments.run, arguments.checkpoints))
