"""A node that vanishes without notice costs what it was working on, and nothing else."""

import dataclasses
import sys
import threading
import time

import pyarrow as pa
import pytest
import toy_units
from small_sources import SIZE, pictures, write_imagefolder
from toy_units import Toy

from raydd.data.source import open_source
from raydd.runtime.execute import run_units, stream_scores
from raydd.runtime.stream import ScoreStream
from raydd.runtime.work import Resources
from raydd.store import scores
from raydd.store.run import Run

pytestmark = pytest.mark.cluster

PATIENCE_S = 180


@pytest.fixture
def three_nodes(no_ray, monkeypatch):
    """A head and two nodes, of one logical CPU each, and the two nodes."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "8")
    memory = {"object_store_memory": 150 * 2**20}
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **memory}
    )
    nodes = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for module in (toy_units, sys.modules[__name__]):
        no_ray.cloudpickle.register_pickle_by_value(module)
    yield cluster, nodes
    no_ray.shutdown()
    cluster.shutdown()


def in_thread(call):
    """Start `call`; nodes can be added and removed in the main thread only."""
    errors = []

    def guarded():
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    return thread, errors


def wait_until(condition, thread):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.05)


@dataclasses.dataclass(frozen=True)
class OnNode(Toy):
    """A slow unit that notes on which node it was begun."""

    def run(self, context):
        import ray

        with open(f"{self.folder}/{self.name}.nodes", "a") as nodes:
            nodes.write(ray.get_runtime_context().get_node_id() + "\n")
        super().run(context)

    def begun_on(self, node):
        path = self.file.with_suffix(".nodes")
        return path.exists() and node.node_id in path.read_text()


def test_units_of_a_lost_node_are_done_by_the_others(three_nodes, tmp_path, capfd):
    cluster, (victim, _) = three_nodes
    units = [OnNode(f"u{i}", str(tmp_path), cost=float(9 - i), seconds=2.0) for i in range(9)]
    events = []

    def run():
        run_units(
            units,
            Resources(),
            "toys",
            storage=str(tmp_path / "state"),
            on_event=lambda unit, event, facts: events.append((unit.name, event, facts)),
        )

    thread, errors = in_thread(run)
    wait_until(lambda: any(unit.begun_on(victim) and not unit.is_done() for unit in units), thread)
    cut = {unit.name for unit in units if unit.begun_on(victim) and not unit.is_done()}
    cluster.remove_node(victim, allow_graceful=False)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert errors == []
    assert all(unit.is_done() for unit in units)
    retried = {name: facts for name, event, facts in events if event == "unit_retried"}
    assert cut <= retried.keys()
    assert len(retried) <= 3
    # Nobody is charged for the loss of a machine.
    assert not any(facts["crashed"] for facts in retried.values())
    assert sum(unit.tries for unit in units) == len(units) + len(retried)


@dataclasses.dataclass(frozen=True)
class SlowScore:
    """Takes its time, and notes each shard that was begun, with the node."""

    folder: str

    def __call__(self, images, labels, keys):
        import ray

        with open(f"{self.folder}/begun", "a") as begun:
            begun.write(f"{ray.get_runtime_context().get_node_id()} {labels[0]}\n")
        time.sleep(1.0)
        return pa.table({"key": keys, "label": pa.array(labels, pa.int32()), "sum": images.sum((1, 2, 3))})


def test_shards_of_a_lost_node_are_scored_by_the_others(three_nodes, tmp_path):
    cluster, (victim, _) = three_nodes
    classes, rows = 15, []
    units = open_source(write_imagefolder(tmp_path / "data", classes, per_class=4)).units(256)
    run = Run(str(tmp_path / "run"))
    stream = ScoreStream(SIZE, ((run, lambda device: SlowScore(str(tmp_path))),))
    thread, errors = in_thread(lambda: stream_scores(stream, units, Resources(), rows.append))
    begun = tmp_path / "begun"
    wait_until(lambda: begun.exists() and victim.node_id in begun.read_text(), thread)
    cluster.remove_node(victim, allow_graceful=False)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert errors == []
    assert scores.committed_units(run) == {unit.name for unit in units}
    good = [scores.read_label(run, label).num_rows for label in range(classes)]
    assert sum(good) + len(scores.read_dropped(run)) == len(pictures(classes, 4))
    times = len(begun.read_text().splitlines())
    print(f"{classes} shards, begun {times} times")
    # What the lost node had begun, and what it had finished but nobody had fetched.
    assert classes < times <= classes + 4
