"""A shard on its way to the score table: pixels arrive as decoded, broken images are listed, parts are refused."""

import dataclasses
import warnings

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_sources import LAYOUTS, SIZE, pictures

from raydd.data.decode import BadImage, decode_image
from raydd.data.source import open_source
from raydd.runtime import local
from raydd.runtime.stream import ScoreStream, UnitScorer, decode_rows, decode_unit, read_unit
from raydd.runtime.work import Resources
from raydd.store import scores
from raydd.store.run import Run


def brightness(images, labels, keys):
    """A score that can be computed by hand, and that says what reached it."""
    return pa.table({"key": keys, "label": pa.array(labels, pa.int32()), "sum": images.reshape(len(keys), -1).sum(1)})


def load_brightness(device):
    return brightness


def decode_by_hand(data):
    try:
        return decode_image(data, SIZE)
    except BadImage:
        return None


@pytest.fixture(params=LAYOUTS)
def source(request, tmp_path):
    return open_source(LAYOUTS[request.param](tmp_path / "data"))


def test_decoded_shards_hold_every_row_and_the_pixels_of_good_ones(source):
    for unit in source.units(16):
        before, after = read_unit(unit), decode_unit(unit, SIZE)
        assert after["key"].to_pylist() == before["key"].to_pylist()
        for data, pixels, error in zip(
            *(t[c].to_pylist() for t, c in ((before, "bytes"), (after, "pixels"), (after, "error")))
        ):
            wanted = decode_by_hand(data)
            assert pixels == (b"" if wanted is None else wanted.tobytes())
            assert (error is None) == (wanted is not None)


def test_scores_of_all_shards_equal_those_of_the_images(source, tmp_path):
    run, rows = Run(str(tmp_path / "run")), []
    stream = ScoreStream(SIZE, ((run, load_brightness),))
    units = source.units(16)
    local.stream_scores(stream, units, Resources(executor="local"), rows.append)
    scores.regroup(run)
    by_hand = [(label, decode_by_hand(data)) for label, _, data in pictures(4, 20)]
    for label in range(4):
        wanted = sorted(int(image.sum()) for at, image in by_hand if at == label and image is not None)
        assert sorted(scores.read_label(run, label)["sum"].to_pylist()) == wanted
    broken = sum(image is None for _, image in by_hand)
    assert broken > 4
    assert len(scores.read_dropped(run)) == broken == sum(row["dropped"] for row in rows)
    assert sum(row["images"] for row in rows) == len(by_hand) - broken
    assert {row["unit"] for row in rows} == {unit.name for unit in units} == scores.committed_units(run)


def test_a_shard_in_pieces_or_two_together_are_not_committed(source, tmp_path):
    run = Run(str(tmp_path / "run"))
    score = UnitScorer(SIZE, [(run, brightness)])
    first, second = (decode_unit(unit, SIZE) for unit in source.units(16)[:2])
    for table in (first.slice(0, 5), pa.concat_tables([first, second])):
        with pytest.raises(RuntimeError, match="in pieces"):
            score(table)
    swapped = pa.concat_tables([first.slice(1), second.slice(0, 1)])
    with pytest.raises(RuntimeError, match="in pieces"):
        score(swapped)
    assert scores.committed_units(run) == set()


def test_a_shard_of_broken_images_only_is_committed_as_empty(source, tmp_path):
    unit = source.units(16)[0]
    run = Run(str(tmp_path / "run"))
    empty = read_unit(unit)
    empty = empty.set_column(2, "bytes", pa.array([b"x"] * empty.num_rows, pa.large_binary()))
    row = UnitScorer(SIZE, [(run, brightness)])(decode_rows(empty, SIZE)).to_pylist()[0]
    assert (row["images"], row["dropped"]) == (0, unit.n)
    assert scores.committed_units(run) == {unit.name}


def test_scorers_get_memory_that_torch_may_write_to(source, tmp_path):
    def check(images, labels, keys):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.from_numpy(images)
        return brightness(images, labels, keys)

    decoded = decode_unit(source.units(16)[0], SIZE)
    UnitScorer(SIZE, [(Run(str(tmp_path / "run")), check)])(decoded)


def test_a_unit_is_a_value_that_survives_a_worker(source):
    import pickle

    unit = source.units(16)[0]
    again = pickle.loads(pickle.dumps(unit))
    assert dataclasses.replace(again, rows=unit.rows) == unit
    assert read_unit(again).equals(read_unit(unit))
    assert np.all(read_unit(again)["unit_rows"].to_numpy() == unit.n)
