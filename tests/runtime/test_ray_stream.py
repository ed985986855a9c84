"""Scores by Ray equal those of the local executor bit for bit, and what is committed is not computed again."""

import time

import pyarrow as pa
import pytest
from scoring import all_rows, score_source
from small_sources import LAYOUTS, SIZE, write_imagefolder, write_teacher

from raydd.data.source import open_source
from raydd.errors import UserError
from raydd.pipelines import score as scoring
from raydd.runtime import cluster
from raydd.runtime.execute import stream_scores
from raydd.runtime.stream import ScoreStream
from raydd.runtime.work import Resources
from raydd.score.table import SCORES
from raydd.store import events, scores
from raydd.store.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("shared_ray")]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_score_of_every_image_is_bit_identical(layout, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(scoring, "UNIT_ROWS", 16)
    data, teacher = LAYOUTS[layout](tmp_path / "data"), write_teacher(tmp_path / "teacher")
    local = score_source(data, teacher, tmp_path / "local", "local")
    capfd.readouterr()
    ray = score_source(data, teacher, tmp_path / "ray", "ray")
    printed = capfd.readouterr()
    for ours, oracle in zip(all_rows(ray), all_rows(local)):
        assert set(SCORES) <= set(oracle.column_names)
        assert ours.equals(oracle)
    assert scores.read_dropped(ray) == scores.read_dropped(local)
    assert len(scores.read_dropped(ray)) > 4
    # A user sees our lines only: progress (a second time on a machine that is slow today), and what was dropped.
    assert list(dict.fromkeys(line.split(":")[0] for line in printed.out.splitlines())) == ["scored images", "scores"]
    assert printed.err == ""


def test_only_missing_shards_are_scored(tmp_path):
    data, teacher = write_imagefolder(tmp_path / "data"), write_teacher(tmp_path / "teacher")
    oracle = all_rows(score_source(data, teacher, tmp_path / "oracle", "local", ["margin"]))
    run = score_source(data, teacher, tmp_path / "run", "ray", ["margin"])
    lost = open_source(data).units(256)[2]
    before = len(events.read(run))
    (tmp_path / "run" / "scores" / "label=2" / f"unit-{lost.name}.parquet").unlink()
    score_source(data, teacher, tmp_path / "run", "ray", ["margin"])
    new = events.read(run)[before:]
    assert [(event["event"], event.get("unit"), event.get("left")) for event in new] == [
        # In images, then in shards.
        ("work_started", None, 20),
        ("scoring_resumed", None, 1),
        ("unit_scored", lost.name, None),
    ]
    assert all(a.equals(b) for a, b in zip(all_rows(run), oracle))


def refuse(device):
    raise UserError("the teacher is gone: bring it back")


def fail_on_class_two(images, labels, keys):
    if 2 in labels:
        raise UserError("class 2 is wrong: mend it")
    return pa.table({"key": keys, "label": pa.array(labels, pa.int32())})


@pytest.mark.parametrize(
    ("load", "message"),
    [(refuse, "the teacher is gone: bring it back"), (lambda device: fail_on_class_two, "class 2 is wrong: mend it")],
)
def test_a_users_error_in_an_actor_is_the_same_error_here(load, message, tmp_path, shared_ray, capfd):
    import sys

    shared_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    units = open_source(write_imagefolder(tmp_path / "data")).units(256)
    stream = ScoreStream(SIZE, ((Run(str(tmp_path / "run")), load),))
    with pytest.raises(UserError) as caught:
        stream_scores(stream, units, Resources(), lambda row: None)
    assert str(caught.value) == message
    assert capfd.readouterr() == ("", "")


def test_a_packed_table_comes_out_as_it_went_in():
    from raydd.runtime.ray_stream import pack, unpack

    table = pa.table({"a": [1, 2, None], "b": pa.array([b"x", b"", b"long" * 99], pa.large_binary())})
    for slice in (table, table.slice(1), table.slice(0, 0)):
        packed = pack(slice)
        assert packed.num_rows == 1
        assert unpack(packed).equals(slice)


def count_rows(images, labels, keys):
    return pa.table({"key": keys, "label": pa.array(labels, pa.int32()), "rows": [len(keys)] * len(keys)})


def test_shards_arrive_whole_even_above_the_usual_block_size(tmp_path, shared_ray):
    import sys

    # 2 classes of 30 images at 1,536 px: 212 MB of pixels per shard, where Ray cuts blocks above 192 MiB.
    shared_ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    data = write_imagefolder(tmp_path / "data", classes=2, per_class=30)
    run, rows = Run(str(tmp_path / "run")), []
    stream = ScoreStream(1536, ((run, lambda device: count_rows),))
    stream_scores(stream, open_source(data).units(256), Resources(workers=1), rows.append)
    assert sorted(row["images"] + row["dropped"] for row in rows) == [30, 30]
    assert [set(scores.read_label(run, label)["rows"].to_pylist()) for label in range(2)] == [
        {row["images"]} for row in sorted(rows, key=lambda row: row["unit"] != open_source(data).units(256)[0].name)
    ]


def test_streams_that_ended_give_their_cpus_back(shared_ray):
    """Those of the tests above, which failed on purpose too; without a look by `connect` some of their actors stay."""
    cluster.connect()
    deadline = time.monotonic() + 60
    while shared_ray.available_resources().get("CPU") != shared_ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, shared_ray.available_resources()
        time.sleep(0.2)
