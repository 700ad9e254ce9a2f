"""A whole dataset by small real models: what is redone and why, growth, kill -9, damage, and clear errors."""

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from kill_points import in_a_child
from PIL import Image
from pydantic import ValidationError
from tiny_datagen import build_alone as build
from tiny_datagen import tiny_dataset_config, tiny_models

from datagen import masks
from datagen.dataset import STAGES, Dataset, DatasetConfig, explained
from flows.report_dataset import stage_rows
from shards.files import read_json_lines, read_tar_records
from shards.markers import rejects_path
from shards.statistics import stage_accounts
from shards.triplets import read_triplets, triplet_paths
from shards.verify import shard_faults

ROOT = Path(__file__).resolve().parents[1]


def changed(config: DatasetConfig, part: str, **settings: object) -> DatasetConfig:
    data = config.model_dump()
    (data[part] if part else data).update(settings)
    return DatasetConfig.model_validate(data)


def contents(run: Path) -> dict[str, bytes]:
    """All files of a run but markers, whose times differ."""
    paths = [path for path in sorted(run.rglob("*")) if path.is_file() and not path.name.endswith(".done.json")]
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def config() -> DatasetConfig:
    return tiny_dataset_config(tiny_models())


@pytest.fixture(scope="module")
def undisturbed(config: DatasetConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed")
    assert len(build(config, run)) == 2 * len(STAGES)
    return run


@pytest.fixture
def run(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, as another file system would hold it: with other modification times."""
    subprocess.run(["cp", "-r", undisturbed, tmp_path / "run"], check=True)
    return tmp_path / "run"


def test_a_dataset_and_its_accounts(config: DatasetConfig, undisturbed: Path) -> None:
    dataset = Dataset(config, undisturbed)
    assert dataset.remaining() == [] and build(config, undisturbed) == []
    for index in range(2):
        expected = config.captions_per_shard
        for stage in STAGES:
            (marker,) = dataset.markers(stage, [index])
            assert marker.records_in == expected
            assert marker.records_in == marker.records_out + sum(marker.rejected.values())
            rejects = read_json_lines(rejects_path(dataset.path(stage, index)))
            assert sum(marker.rejected.values()) == len(list(rejects))
            expected = marker.records_out
    triplets = list(read_triplets([dataset.path("triplets", index) for index in range(2)]))
    assert triplets
    for triplet in triplets:
        assert triplet.image.size == triplet.mask.size
        assert {"caption", "subject", "class", "place", "seed", "box", "score", "predicted_iou"} <= set(triplet.record)
        assert set(triplet.record["models"]) == {"captions", "images.model", "masks.box_model", "masks.mask_model"}
        assert all(value.startswith("sha256:") for value in triplet.record["models"].values())
        # where things lie, and when they were made, is nobody's business
        assert str(undisturbed) not in json.dumps(triplet.record) and "/" not in json.dumps(triplet.record)


def test_one_setting_redoes_what_depends_on_it(config: DatasetConfig, run: Path) -> None:
    before = contents(run)
    other = changed(config, "images", guidance_scale=5.0)
    assert explained(Dataset(other, run).remaining()) == [
        "images: 2 shards (00000 to 00001) to make: images.guidance_scale: 3.5 -> 5.0",
        "masks: 2 shards (00000 to 00001) may follow: if images change",
        "gates: 2 shards (00000 to 00001) may follow: if masks change",
        "triplets: 2 shards (00000 to 00001) may follow: if images or masks or gates change",
    ]
    made = build(other, run)
    assert {name.split("/")[0] for name in made} <= {"images", "masks", "gates", "triplets"} and "images/00001" in made
    assert contents(run) != before
    build(config, run)
    assert contents(run) == before


def test_several_images_of_a_caption(config: DatasetConfig, run: Path) -> None:
    """Each has a key and noise of its own; the first one shows what the only one did."""
    before = dict(read_tar_records(run / "images" / "00000.tar"))
    other = changed(config, "", images_per_caption=3)
    assert explained(Dataset(other, run).remaining())[0] == (
        "images: 2 shards (00000 to 00001) to make: images.copies: 1 -> 3"
    )
    made = build(other, run)
    assert not any(name.startswith(("captions/", "dedup/")) for name in made) and "triplets/00000" in made
    dataset = Dataset(other, run)
    (kept,), (marker,) = dataset.markers("dedup", [0]), dataset.markers("images", [0])
    assert marker.records_in == 3 * kept.records_out
    markers = {stage: list(dataset.markers(stage, [0, 1])) for stage in ("dedup", "images")}
    assert [row.get("copies") for row in stage_accounts(markers).values()] == [None, 3]
    assert [row["copies"] for row in stage_rows(markers)] == [1, 3]
    images = dict(read_tar_records(run / "images" / "00000.tar"))
    assert set(images) == {f"{key}--{number}" for key in before for number in range(3)}
    for key, parts in before.items():
        copies = [images[f"{key}--{number}"] for number in range(3)]
        assert len({copy["jpg"] for copy in copies}) == 3
        pixels = [np.asarray(Image.open(io.BytesIO(jpg)), dtype=int) for jpg in (parts["jpg"], copies[0]["jpg"])]
        assert np.abs(pixels[0] - pixels[1]).max() <= 2  # it stood in another batch
        assert len({json.loads(copy["json"])["caption"] for copy in copies}) == 1
    assert not shard_faults(run)
    wanted = Dataset(changed(other, "", shards=None, target_triplets=60), run)
    assert wanted.next_block([range(0, 2)], {}) == range(2, 4)  # 48 images are not enough
    assert wanted.next_block([range(0, 2), range(2, 4)], {}) is None
    assert "images/00000" in build(config, run) and dict(read_tar_records(run / "images" / "00000.tar")) == before


def test_blocks_side_by_side_are_those_of_one_process(config: DatasetConfig, tmp_path: Path) -> None:
    """Of 2 shards of 8 captions each: what is begun beforehand is what surely has to be built."""
    first, second, third = range(0, 2), range(2, 4), range(4, 6)
    wanted = Dataset(changed(config, "", shards=None, target_triplets=40), tmp_path)
    assert [wanted.next_block(begun, {}) for begun in ([], [first], [first, second])] == [first, second, third]
    begun = [first, second, third]
    assert wanted.next_block(begun, {}) is None  # 48 captions may be enough
    assert wanted.next_block(begun, {second: 8}) is None
    assert wanted.next_block(begun, {second: 7}) == range(6, 8)  # even 32 more would not be
    with pytest.raises(RuntimeError, match="shards 2 to 3 gave no triplet"):
        wanted.next_block(begun, {first: 16, second: 0})
    sized = Dataset(changed(config, "", shards=3), tmp_path)
    assert [sized.next_block(begun, {}) for begun in ([], [first])] == [first, range(2, 3)]
    assert sized.next_block([first, range(2, 3)], {}) is None
    few = Dataset(changed(config, "", shards=3, target_triplets=20), tmp_path)
    assert few.next_block([first, range(2, 3)], {first: 3}) is None  # the last block is still on its way
    with pytest.raises(RuntimeError, match="target_triplets is 20, but 3 shards gave 5"):
        few.next_block([first, range(2, 3)], {first: 3, range(2, 3): 2})


def test_a_gate_reruns_no_model(config: DatasetConfig, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.nn.Module.__init__", None)  # a model would not even be built
    other = changed(config, "gates", min_box_score=0.3)
    assert {name.split("/")[0] for name in build(other, run)} <= {"gates", "triplets"}
    assert build(changed(config, "gates", max_border=5.0), run)[:2] == ["gates/00000", "gates/00001"]


def test_execution_settings_redo_nothing(config: DatasetConfig, run: Path) -> None:
    other = changed(config, "images", execution={"batch_size": 3, "device": "cpu", "threads": 2})
    assert build(other, run) == []


def test_models_are_known_by_their_weights(config: DatasetConfig, run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    subprocess.run(["cp", "-r", config.images.model, moved], check=True)
    other = changed(config, "images", model=str(moved))
    assert Dataset(other, run).remaining() == []
    weights = moved / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    line = explained(Dataset(other, run).remaining())[0]
    assert line.startswith("images: 2 shards (00000 to 00001) to make: images.models.model: sha256:")


def test_growing_keeps_what_is_there(config: DatasetConfig, undisturbed: Path, tmp_path: Path) -> None:
    made = build(changed(config, "", shards=1), tmp_path)
    assert len(made) == len(STAGES)
    assert [name.split("/")[1] for name in build(config, tmp_path)] == ["00001"] * len(STAGES)
    assert contents(tmp_path) == contents(undisturbed)


def test_shrinking_leaves_shards_out_and_growing_takes_them_back(config: DatasetConfig, run: Path) -> None:
    smaller = changed(config, "", shards=1)
    assert explained(Dataset(smaller, run).remaining()) == [
        "triplets: 1 shard (00001) to leave out: the dataset is smaller now"
    ]
    assert build(smaller, run) == [] and Dataset(smaller, run).remaining() == []
    assert [path.name for path in triplet_paths(run)] == ["00000.tar"]
    assert build(config, run) == ["triplets/00001"] and len(triplet_paths(run)) == 2


def test_a_target_is_reached_block_by_block(config: DatasetConfig, run: Path) -> None:
    have = sum(Dataset(config, run).records_out("triplets", range(2)))
    reached = changed(config, "", shards=None, target_triplets=have)
    assert Dataset(reached, run).remaining() == [] and build(reached, run) == []
    more = changed(config, "", shards=None, target_triplets=have + 1)
    assert {shard.plan.index for shard in Dataset(more, run).remaining()} == {2, 3}
    too_many = changed(config, "", target_triplets=1000)
    with pytest.raises(RuntimeError, match=f"target_triplets is 1000, but 2 shards gave {have}: raise shards"):
        build(too_many, run)


def test_kill_9_in_every_stage(config: DatasetConfig, undisturbed: Path, tmp_path: Path) -> None:
    points = ["captions/00001 written", "dedup/00001 synced", "images/00000 unmarked", "images/00001 opened"]
    points += ["masks/00001 renamed", "gates/00000 renamed", "triplets/00001 marked"]

    run = tmp_path / "run"
    for point in points:
        killed = in_a_child(lambda: build(config, run), tmp_path / "points.log", kill_at=point)
        assert killed == -signal.SIGKILL, point
    assert build(config, run) == []  # the last point is the last marker
    assert contents(run) == contents(undisturbed)


@pytest.mark.parametrize("stage", STAGES)
def test_a_torn_shard_is_named_and_rebuilt_alone(
    config: DatasetConfig, undisturbed: Path, run: Path, stage: str
) -> None:
    dataset = Dataset(config, run)
    torn = dataset.path(stage, 0)
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2])
    line = explained(dataset.remaining())[0]
    assert line == f"{stage}: 1 shard (00000) to make: {torn.name} is torn or altered"
    assert build(config, run) == [f"{stage}/00000"]
    assert contents(run) == contents(undisturbed)


def test_deciding_loads_neither_torch_nor_prefect(config: DatasetConfig, undisturbed: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from datagen.dataset import Dataset, DatasetConfig\n"
        "config = DatasetConfig.model_validate_json(sys.argv[1])\n"
        "assert Dataset(config, Path(sys.argv[2])).remaining() == []\n"
        "print([name for name in ('torch', 'prefect', 'transformers', 'diffusers', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, config.model_dump_json(), undisturbed]
    assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_errors_are_one_line_and_say_what_to_do(config: DatasetConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="images.model: there is no folder ./none; name a local folder"):
        Dataset(changed(config, "images", model="./none"), tmp_path)
    with pytest.raises(OSError, match="there is no folder no/where, .*set masks.mask_model to the local"):
        Dataset(changed(config, "masks", mask_model="no/where"), tmp_path)
    with pytest.raises(FileNotFoundError, match="taxonomy none.json does not exist"):
        Dataset(changed(config, "captions", taxonomy="none.json"), tmp_path)
    with pytest.raises(ValidationError, match="guidance"):
        changed(config, "images", guidance=5.0)
    with pytest.raises(ValidationError, match="set shards or target_triplets"):
        changed(config, "", shards=None)
    with pytest.raises(ValidationError, match="captions_per_shard has to be a multiple"):
        changed(config, "captions", captions_per_request=3)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_before_any_caption(config: DatasetConfig, tmp_path: Path) -> None:
    other = changed(config, "masks", mask_engine="segment-anything")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(masks.PACKAGES, "segment-anything", "no_such_package")
        with pytest.raises(ModuleNotFoundError, match="masks.mask_engine: the package segment-anything .*pip install"):
            build(other, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_writes_nonsense_stops_before_the_next_is_loaded(config: DatasetConfig, tmp_path: Path) -> None:
    hurried = changed(config, "captions", max_new_tokens=8)
    with pytest.raises(ValueError, match=r"captions: no record was left \(broken JSON 16\)"):
        build(hurried, tmp_path)
    assert not (tmp_path / "images").exists()
    assert len(list(read_json_lines(tmp_path / "captions" / "00000.rejects.jsonl"))) == 8
