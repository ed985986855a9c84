"""Bytes, times and dropped images are sums and means of what runs recorded."""

import pytest
from synthetic_runs import make_run

from raydd.evaluate.record import read_results
from raydd.report.facts import (
    bytes_part,
    bytes_text,
    configuration_part,
    dropped_part,
    seconds_text,
    timings_part,
)
from raydd.store import scores


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (48_100, "48.1 kB"), (2.5e9, "2.5 GB"), (3e12, "3.0 TB")],
)
def test_bytes_text(size, text):
    assert bytes_text(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "-"), (0.04, "0.0 s"), (99, "99.0 s"), (240, "4.0 min"), (7200, "2.0 h")]
)
def test_seconds_text(seconds, text):
    assert seconds_text(seconds) == text


def test_bytes_count_images_labels_and_teacher(tmp_path):
    results = [read_results(make_run(str(tmp_path / f"{s}"), "random", 2, s)) for s in range(2)]
    image = sum(result.manifest["image_bytes"] for result in results) / 2
    html = bytes_part({("random", 2): results})
    assert bytes_text(image) in html and bytes_text(image + 1_200_000) in html and f"{image / 20:,.0f} B" in html
    full = read_results(make_run(str(tmp_path / "full"), "full", 2, 0))
    assert bytes_part({("full", 2): [full]}) is None


def test_times_are_means_over_the_runs_that_recorded_them(tmp_path):
    runs = [make_run(str(tmp_path / f"{s}"), "random", 1, s) for s in range(2)]
    for run, seconds in zip(runs, (10, 20)):
        run.end("distill", seconds=seconds)
    runs[0].begin("score", {}, seed=0)
    runs[0].end("score", images=1437, seconds=7)
    html = timings_part({("random", 1): [read_results(run) for run in runs]})
    assert "15.0 s" in html and "7.0 s" in html and "1,437" in html and "<td>12</td>" in html


def test_dropped_images_by_reason_most_frequent_first(tmp_path):
    run = make_run(str(tmp_path / "run"), "random", 1, 0)
    assert "No image was dropped" in dropped_part([read_results(run)])
    scores.commit_unit(run, "a", 0, None, [("x", "rare"), ("y", "often"), ("z", "often")])
    html = dropped_part([read_results(run)])
    assert html.index("often") < html.index("rare") and "y, z" in html


def test_configuration_shows_versions_and_each_protocol_once(tmp_path):
    results = [read_results(make_run(str(tmp_path / f"{s}"), "random", 1, s)) for s in range(2)]
    html = configuration_part(results)
    assert "mipc" in html and "torch" in html
    assert html.count("protocol hard") == 1 and html.count("protocol soft") == 1
