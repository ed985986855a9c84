"""What TensorBoard is shown is what the events and the curves say; its file is valid down to the checksums."""

import builtins
import math
import struct

import pytest
import torch

from raydd.report import scalars
from raydd.report.scalars import FILE, MOST_POINTS, Point, encode, write_scalars
from raydd.store import distilled, events, learned
from raydd.store import filesystem as files
from raydd.store.distilled import DistilledImage
from raydd.store.run import Run

event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")


@pytest.fixture(params=["local", "memory"])
def run(request, tmp_path) -> Run:
    return Run(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path}/run")


def crc32c(data: bytes) -> int:
    """Castagnoli's checksum bit by bit; of b"123456789" it is 0xE3069283."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def decode(data: bytes) -> list:
    """The events of a file, whose checksums are checked."""
    found = []
    while data:
        (length,), (crc,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        record, end = data[12 : 12 + length], 12 + length
        assert (crc, struct.unpack("<I", data[end : end + 4])[0]) == (masked(data[:8]), masked(record))
        found.append(event_pb2.Event.FromString(record))
        data = data[end + 4 :]
    return found


def test_the_file_is_a_valid_one():
    assert crc32c(b"123456789") == 0xE3069283
    version, *rest = decode(encode([Point("a/b", 3, 0.25, 100.5), Point("c", 2**40, -1.0, 101.0)]))
    assert (version.file_version, version.wall_time) == ("brain.Event:2", 100.5)
    told = [(e.summary.value[0].tag, e.step, e.summary.value[0].simple_value, e.wall_time) for e in rest]
    assert told == [("a/b", 3, 0.25, 100.5), ("c", 2**40, -1.0, 101.0)]


def test_scalars_tell_what_the_events_tell(run):
    for images in (4, 6):
        events.append(run, "unit_scored", unit=f"u{images}", images=images, dropped=0, seconds=0.1)
    for name in ("a", "b"):
        events.append(run, "class_committed", name=name, images=1, seconds=1.0)
    steps = [{"step": 2, "before": 3.0, "after": 2.0}, {"step": 1, "before": 2.0, "after": 0.5}, {"step": 0}]
    events.append(run, "noise_optimized", name="a", chunk=0, steps=steps)
    events.append(run, "student_trained", name="hard-convnet3-0", last=0.75, seconds=3)
    events.append(run, "expert_trained", name="4", accuracy=0.5, seconds=3)
    assert write_scalars(run) == run.path("tensorboard")
    by_tag = {}
    for event in decode(files.read_bytes(run.path("tensorboard", FILE)))[1:]:
        (value,) = event.summary.value
        by_tag.setdefault(value.tag, []).append((event.step, value.simple_value))
    (_, rate) = by_tag.pop("score/images_per_s")[0]
    first, second = (event["time"] for event in events.read(run)[:2])
    assert math.isclose(rate, 6 / max(second - first, 1e-3), rel_tol=1e-5)
    assert by_tag == {
        "score/images": [(4, 4), (10, 10)],
        "distill/classes": [(1, 1), (2, 2)],
        "sort loss/a, chunk 0": [(0, 2.0), (1, 0.5)],
        "accuracy/hard-convnet3-0": [(0, 0.75)],
        "evaluate/students": [(1, 1)],
        "accuracy/expert 4": [(0, 0.5)],
        "experts/trained": [(1, 1)],
    }
    # Written anew, not appended to.
    before = files.read_bytes(run.path("tensorboard", FILE))
    write_scalars(run)
    assert files.read_bytes(run.path("tensorboard", FILE)) == before


def test_losses_of_learned_classes_are_shown(run):
    curve = {"iteration": torch.tensor([0, 5, 9]), "loss": torch.tensor([4.0, 2.0, 1.0])}
    heldout = {"heldout_iteration": torch.tensor([0, 9]), "heldout": torch.tensor([3.0, 2.5])}
    for label in (0, 1):
        found = learned.Learned(**curve, **heldout, facts={}, latents=torch.zeros(1, 1, 2, 2))
        learned.write_learned(run, label, found)
    # The second class is not committed: what it is called is not known yet.
    distilled.commit_class(run, 0, ["zero", "one"], [DistilledImage(b"x", "synthetic", ())])
    events.append(run, "class_committed", name="zero", images=1, seconds=1.0)
    files.write_atomic(learned.path(run, 2), b"damaged")
    told = [(point.tag, point.step, point.value) for point in scalars.scalars(run) if "loss" in point.tag]
    assert told == [
        ("held-out loss/zero", 0, 3.0),
        ("held-out loss/zero", 9, 2.5),
        ("loss/zero", 0, 4.0),
        ("loss/zero", 5, 2.0),
        ("loss/zero", 9, 1.0),
    ]


def test_long_curves_are_thinned_and_keep_their_ends(tmp_path):
    run = Run(str(tmp_path / "run"))
    count = 3 * MOST_POINTS + 7
    for index in range(count):
        events.append(run, "class_committed", name=str(index), images=1, seconds=0.0)
    points = [point for point in scalars.scalars(run) if point.tag == "distill/classes"]
    assert len(points) == MOST_POINTS
    assert (points[0].value, points[-1].value) == (1, count)


def test_odd_events_are_left_out(run):
    for facts in ({"images": "x"}, {"images": None}, {}):
        events.append(run, "unit_scored", **facts)
    for kind in ("student_trained", "expert_trained"):
        events.append(run, kind, name="a", last="good", accuracy=None)
    events.append(run, "noise_optimized", name=["a"], steps=[{"after": "x"}, 3])
    events.append(run, "noise_optimized", name=None, steps=3)
    told = [(point.tag, point.value) for point in scalars.scalars(run) if not point.tag.endswith("per_s")]
    assert sorted(told) == [("evaluate/students", 1), ("experts/trained", 1)] + [("score/images", 0)] * 3


def test_nothing_is_written_without_events_or_without_the_encoder(run, monkeypatch):
    assert write_scalars(run) is None
    events.append(run, "class_committed", name="a", images=1, seconds=1.0)
    load = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert write_scalars(run) is None
    assert not files.exists(run.path("tensorboard"))
