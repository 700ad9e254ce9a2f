import copy
import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from test_dreamcache_adapters import moved_adapters
from tiny_diffusion import save_tiny_stable_diffusion
from tiny_triplets import write_tiny_triplets

from dreamcache.adapters import AdapterSet
from dreamcache.backbone import load_backbone
from dreamcache.checkpoints import LOG_COLUMNS, locked_folder
from dreamcache.configs import SamplingConfig, TrainingConfig
from dreamcache.held_out import is_held_out
from dreamcache.objective import training_loss
from dreamcache.training import train_adapters
from dreamcache.training_data import TrainingData, collate, store_latents
from dreamcache.validation import held_out_triplets, prepare_validation, validation_loss, validation_losses
from shards.files import written_at_once
from shards.triplets import TripletShards

CONFIG = TrainingConfig(
    steps=8, batch_size=4, learning_rate=1e-3, held_out=0.3, validation_every=4, checkpoint_every=3, ema_decay=0.9,
    warmup_steps=2, reference_variants=2, caption_dropout=0.3,
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("training")
    save_tiny_stable_diffusion(place / "sd")
    write_tiny_triplets(place / "run")
    return place


@pytest.fixture(scope="module")
def backbone(place):
    return load_backbone(place / "sd")


@pytest.fixture(scope="module")
def paths(place) -> list[Path]:
    return sorted((place / "run" / "triplets").glob("*.tar"))


@pytest.fixture(scope="module")
def undisturbed(place, backbone, paths) -> Path:
    weights = {name: tensor.clone() for name, tensor in backbone.unet.state_dict().items()}
    train_adapters(backbone, paths, CONFIG, place / "undisturbed")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in backbone.unet.state_dict().items())
    return place / "undisturbed"


def read_log(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def equal_trees(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal_trees(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal_trees, one, other))
    return one == other


def assert_same_training(one: Path, other: Path) -> None:
    states = [torch.load(folder / "state" / "training.pt", weights_only=True) for folder in (one, other)]
    assert all(state.pop("seconds") > 0 for state in states) and equal_trees(*states)
    assert (one / "log.csv").read_bytes() == (other / "log.csv").read_bytes()
    for name in ("adapters.safetensors", "config.json"):
        assert (one / "adapters" / name).read_bytes() == (other / "adapters" / name).read_bytes()


def test_training_writes_adapters_state_and_log(undisturbed, backbone):
    rows = read_log(undisturbed)
    assert [int(row["step"]) for row in rows] == list(range(1, 9)) and tuple(rows[0]) == LOG_COLUMNS
    assert [row["step"] for row in rows if row["validation_right"]] == ["4", "8"]
    assert [float(row["lr"]) for row in rows[:3]] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    trained = AdapterSet.from_pretrained(undisturbed / "adapters", backbone).tensors()
    fresh = AdapterSet.for_unet(backbone.unet).tensors()
    still = [name for name in fresh if torch.equal(fresh[name], trained[name])]
    # The mid block is 1 x 1 at this size, so nothing but weight decay and biases' gradients reach its query's norm.
    assert all("norm" in name for name in still), still


def test_training_killed_twice_and_resumed_equals_undisturbed(undisturbed, place, backbone, tmp_path):
    script = (
        "import os, signal, sys, torch\n"
        "from pathlib import Path\n"
        "sys.path.insert(0, sys.argv[4])\n"
        "from test_dreamcache_training import CONFIG\n"
        "import dreamcache.training as training\n"
        "from dreamcache.backbone import load_backbone\n"
        "kill_after, seen = sys.argv[3], []\n"
        "def die(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def report(row):\n"
        "    if 'encoded' in row and kill_after == 'latents' and row['encoded'] > 10: die()\n"
        "loss = training.training_loss\n"
        "def counted(*arguments):\n"
        "    seen.append(1)\n"
        "    if kill_after == f'step {len(seen)}': die()\n"
        "    return loss(*arguments)\n"
        "training.training_loss = counted\n"
        "paths = sorted((Path(sys.argv[2]).parent / 'run' / 'triplets').glob('*.tar'))\n"
        "training.train_adapters(load_backbone(Path(sys.argv[1]) / 'sd'), paths, CONFIG, Path(sys.argv[2]), report)\n"
    )
    paths = write_tiny_triplets(tmp_path / "run")  # the same triplets, with nothing encoded yet
    for kill_after in ("latents", "step 5"):
        result = subprocess.run(
            [
                sys.executable,
                "-c",
                script,
                str(place),
                str(tmp_path / "killed"),
                kill_after,
                str(Path(__file__).parent),
            ],
            env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        )
        assert result.returncode == -signal.SIGKILL
    # What a kill in mid-write leaves behind.
    with (tmp_path / "killed" / "log.csv").open("a") as log:
        log.write("7,0.1")
    train_adapters(backbone, paths, CONFIG, tmp_path / "killed")
    assert_same_training(tmp_path / "killed", undisturbed)


def test_longer_training_goes_on_where_it_ended(backbone, paths, undisturbed, tmp_path):
    short = CONFIG.model_copy(update={"steps": 6})
    state = tmp_path / "grown" / "state" / "training.pt"
    train_adapters(backbone, paths, short, tmp_path / "grown")
    seconds = torch.load(state, weights_only=True)["seconds"]
    train_adapters(backbone, paths, CONFIG, tmp_path / "grown")
    assert torch.load(state, weights_only=True)["seconds"] > seconds
    rows = read_log(tmp_path / "grown")
    assert [row["loss"] for row in rows] == [row["loss"] for row in read_log(undisturbed)]
    before = (tmp_path / "grown" / "log.csv").stat().st_mtime_ns
    assert train_adapters(backbone, paths, CONFIG, tmp_path / "grown") == tmp_path / "grown" / "adapters"
    assert (tmp_path / "grown" / "log.csv").stat().st_mtime_ns == before


def test_altered_adapters_of_a_finished_training_are_written_again(backbone, paths, undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed, tmp_path / "trained")
    weights = folder / "adapters" / "adapters.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (folder / "adapters" / "config.json").unlink()
    train_adapters(backbone, paths, CONFIG, folder)
    assert_same_training(folder, undisturbed)
    shutil.rmtree(folder / "adapters")
    train_adapters(backbone, paths, CONFIG, folder)
    assert_same_training(folder, undisturbed)


def test_accumulated_parts_are_one_batch(backbone, paths, undisturbed, tmp_path):
    parts = CONFIG.model_copy(update={"accumulation": 2, "steps": 2})
    train_adapters(backbone, paths, parts, tmp_path / "parts")
    for row, whole in zip(read_log(tmp_path / "parts"), read_log(undisturbed), strict=False):
        assert float(row["loss"]) == pytest.approx(float(whole["loss"]), rel=1e-5)


def test_rows_depend_on_seed_and_number_alone(backbone, paths, tmp_path):
    shards = TripletShards(paths)
    online = CONFIG.model_copy(update={"reference_variants": 0, "store_latents": False})
    one, two = (TrainingData(shards, online, backbone, None) for _ in range(2))
    two[3]
    first, second = one[17], two[17]
    assert first["caption"] == second["caption"] and first["timestep"] == second["timestep"]
    for name in ("noise", "reference_noise", "reference", "target"):
        assert torch.equal(first[name], second[name])
    epoch = [one.order.at(0, position) for position in range(len(one.order))]
    assert len(set(epoch)) == len(epoch) == sum(map(len, one.kept))


@pytest.mark.parametrize("workers", [0, 2])
def test_online_and_stored_latents_train_alike(backbone, paths, workers):
    shards, null_text = TripletShards(paths), backbone.encode_prompts([""])
    losses = []
    for stored in (True, False):
        config = CONFIG.model_copy(update={"reference_variants": 0, "store_latents": stored})
        files = store_latents(backbone, shards, config) if stored else None
        data = TrainingData(shards, config, backbone, files)
        loader = torch.utils.data.DataLoader(
            data, batch_size=4, sampler=range(8), num_workers=workers, collate_fn=collate,
            # A forked one inherits what Prefect does at its exit, where a flow ran in this process before, and fails.
            multiprocessing_context="spawn" if workers else None,
        )  # fmt: skip
        adapters = AdapterSet.for_unet(backbone.unet)
        losses.append([float(training_loss(backbone, adapters, batch, null_text)) for batch in loader])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_held_out_triplets_are_never_trained_on(backbone, paths):
    shards = TripletShards(paths)
    data = TrainingData(shards, CONFIG, backbone, None)
    trained = {shards.keys(shard)[index] for shard in range(2) for index in data.kept[shard]}
    held_out = {triplet.key for triplet in held_out_triplets(shards, CONFIG.held_out, 100)}
    assert held_out == {f"{n:05d}" for n in range(20) if is_held_out(f"{n:05d}", 0.3)}
    assert trained.isdisjoint(held_out) and len(trained) + len(held_out) == 20


def test_validation_is_repeatable_and_equal_for_fresh_adapters(backbone, paths):
    triplets = held_out_triplets(TripletShards(paths), CONFIG.held_out, 4)
    losses = validation_loss(backbone, AdapterSet.for_unet(backbone.unet), triplets)
    assert losses == validation_loss(backbone, AdapterSet.for_unet(backbone.unet), triplets)
    assert losses["right"] == losses["wrong"] == losses["none"] > 0
    moved = validation_losses(backbone, moved_adapters(backbone.unet), prepare_validation(backbone, triplets))
    assert losses["none"] == pytest.approx(float(moved["none"].mean()))
    assert not torch.equal(moved["right"], moved["wrong"]) and not torch.equal(moved["right"], moved["none"])


def test_what_cannot_go_on_is_named(backbone, paths, undisturbed, place, tmp_path):
    with pytest.raises(ValueError, match=r"learning_rate was 0.001 and is 0.01"):
        train_adapters(backbone, paths, CONFIG.model_copy(update={"learning_rate": 0.01}), undisturbed)
    with pytest.raises(ValueError, match="triplets are others"):
        train_adapters(backbone, paths[:1], CONFIG, undisturbed)
    with pytest.raises(ValueError, match="more than 2"):
        train_adapters(backbone, paths, CONFIG.model_copy(update={"steps": 2}), undisturbed)
    with locked_folder(tmp_path), pytest.raises(ValueError, match="another process is training"):
        train_adapters(backbone, paths, CONFIG, tmp_path)
    with pytest.raises(ValueError, match="load it so"):
        train_adapters(backbone, paths, CONFIG.model_copy(update={"dtype": "bfloat16"}), tmp_path)
    with pytest.raises(FileNotFoundError):
        train_adapters(backbone, [tmp_path / "00000.tar"], CONFIG, tmp_path)
    other = copy.copy(backbone)
    other.__dict__["identity"] = "0" * 64
    with pytest.raises(ValueError, match="the backbone is another"):
        train_adapters(other, paths, CONFIG, undisturbed)
    with pytest.raises(ValidationError, match="does not divide"):
        TrainingConfig(batch_size=4, accumulation=3)
    with pytest.raises(ValidationError, match="reference_variants need stored latents"):
        TrainingConfig(reference_variants=1, store_latents=False)
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: lower learning_rate"):
        train_adapters(backbone, paths, CONFIG.model_copy(update={"learning_rate": 1e20}), tmp_path / "diverged")


def test_bfloat16_backbone_trains_float32_adapters(place, paths, tmp_path):
    backbone = load_backbone(place / "sd", dtype=torch.bfloat16)
    config = CONFIG.model_copy(update={"dtype": "bfloat16", "steps": 2})
    adapters = AdapterSet.from_pretrained(train_adapters(backbone, paths, config, tmp_path / "bf16"))
    assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float32}


def test_sample_grids_show_held_out_subjects_and_disturb_nothing(backbone, paths, undisturbed, tmp_path, monkeypatch):
    monkeypatch.setattr("dreamcache.sample_grid.SAMPLING", SamplingConfig(guidance="joint", steps=2))
    config = CONFIG.model_copy(update={"steps": 2, "samples_every": 1})
    train_adapters(backbone, paths, config, tmp_path / "shown")
    grids = [tmp_path / "shown" / "samples" / f"{step:08d}.png" for step in (1, 2)]
    first, second = (np.asarray(Image.open(grid)) for grid in grids)
    assert first.shape == (4 * 64, 3 * 64, 3) and np.array_equal(first[:, :128], second[:, :128])
    reference, plain, personalized = np.split(second, 3, axis=1)
    assert not np.array_equal(plain, personalized) and (reference[0, 0] == 255).all()
    assert [row["loss"] for row in read_log(tmp_path / "shown")] == [row["loss"] for row in read_log(undisturbed)][:2]


def test_stored_latents_serve_their_own_recipe_alone(backbone, tmp_path):
    shards = TripletShards(write_tiny_triplets(tmp_path / "run", shards=1))
    (first,) = store_latents(backbone, shards, CONFIG)
    written = first.stat().st_mtime_ns
    assert first.parent == tmp_path / "run" / "triplets" / "latents"
    assert store_latents(backbone, shards, CONFIG.model_copy(update={"steps": 3})) == [first]
    assert first.stat().st_mtime_ns == written
    others = [{"reference_variants": 1}, {"seed": 1}, {"augment_references": False}]
    files = {store_latents(backbone, shards, CONFIG.model_copy(update=other))[0] for other in others}
    assert len(files | {first}) == 4
    elsewhere = write_tiny_triplets(tmp_path / "other", shards=1)
    (tmp_path / "other" / "triplets" / "latents").write_text("in the way")
    with pytest.raises(ValueError, match="set store_latents to false"):
        store_latents(backbone, TripletShards(elsewhere), CONFIG)


def test_trainings_that_begin_together_take_no_file_of_each_others(backbone, tmp_path):
    shards = TripletShards(write_tiny_triplets(tmp_path / "run", shards=1))
    (stored,) = store_latents(backbone, shards, CONFIG)
    content = stored.read_bytes()
    stored.unlink()
    with written_at_once(stored) as other:
        assert store_latents(backbone, shards, CONFIG) == [stored]
        other.write(content)
    assert list(stored.parent.iterdir()) == [stored] and stored.read_bytes() == content
