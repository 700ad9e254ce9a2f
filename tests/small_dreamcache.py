"""The command line with the profile `miniature` as it ships but for its sizes, so that a whole run takes a minute."""

from flows import profiles
from flows.cli import main

SMALL = {
    "captions_per_shard": 8,
    "images.steps": 10,
    "gates.min_box_score": 0.0,
    "gates.min_predicted_iou": 0.0,
    "training.steps": 4,
    "training.batch_size": 4,
    "training.warmup_steps": 1,
    "training.validation_every": 2,
    "training.validation_triplets": 4,
    "training.checkpoint_every": 2,
    "training.held_out": 0.3,
    "evaluation.prompts": 1,
    "evaluation.sampling.steps": 3,
    "benchmark.subjects": 2,
    "benchmark.images": 2,
}

if __name__ == "__main__":
    small = profiles.load_profile("miniature", SMALL)
    profiles.PROFILES["miniature"] = lambda: small
    main()
