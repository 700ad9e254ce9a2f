"""What is in a dataset, counted over triplets that differ."""

from pathlib import Path

from tiny_triplets import tiny_triplet

from shards.statistics import triplet_statistics
from shards.triplets import Triplet, write_triplets


def test_spreads_histograms_and_order(tmp_path: Path) -> None:
    rows = [("a dog runs fast", "dog", 0.04), ("dog", "dog", 1.0), ("two cats", "cat", 0.31)]
    one = tiny_triplet(0)
    triplets = [
        Triplet(f"{n}", one.jpg, one.mask_png, {"caption": caption, "class": kind, "area": area})
        for n, (caption, kind, area) in enumerate(rows)
    ]
    found = triplet_statistics([write_triplets(tmp_path, 0, triplets, "test")])
    assert list(found["classes"].items()) == [("dog", 2), ("cat", 1)]
    words = {"lowest": 1, "mean": 2.3333, "highest": 4, "histogram": {"1": 1, "2": 1, "4": 1}}
    assert found["caption_words"] == words
    areas = found["mask_area"]
    assert (areas["lowest"], areas["mean"], areas["highest"]) == (0.04, 0.45, 1.0)
    assert {edge: count for edge, count in areas["histogram"].items() if count} == {"0.00": 1, "0.30": 1, "0.95": 1}
