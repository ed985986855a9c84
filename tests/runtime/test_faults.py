"""The fault matrix: whatever breaks, the same command goes on, repeats little, and ends with the same bytes.

Columns are the stages with their real methods (`fault_work`). Rows that do not concern Ray are tried in this process:
a killed driver, a full disk, storage that fails. The others share one cluster of a head without CPUs and small nodes: a
killed worker, a killed raylet (which is a lost node), a preemption notice. A lost head is a killed driver that takes
its cluster along (`test_dsco_killed`, `test_driver_killed`), and is tried at random by `benchmarks/faults.py`.
"""

import dataclasses
import errno
import functools
import os
import threading
import time
from pathlib import Path

import fault_work
import pytest
from commandline import snapshot
from failing_s3 import WAYS, failing_s3
from fault_work import COLUMNS, Doomed, DoomedLoad, Work, collect, committed, killed_at, outcome, with_fault
from pipelines.conftest import CLASSES, write_tree
from priors import write_tiny_prior

from raydd.errors import UserError
from raydd.runtime.execute import run_units, stream_scores
from raydd.runtime.stream import ScoreStream
from raydd.runtime.work import Resources
from raydd.store import events, lease, local_disk
from raydd.store import filesystem as files
from raydd.store.run import Run

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def work(tmp_path_factory, digits_teacher) -> Work:
    root = tmp_path_factory.mktemp("faults")
    for size in (8, 16):
        write_tiny_prior(root / f"prior-{size}", CLASSES, size)
    made = Work(str(write_tree(root / "tree")), str(root / "prior"), digits_teacher, str(root / "base"))
    made.make_base()
    return made


@pytest.fixture(scope="module")
def calm(work, tmp_path_factory):
    """What a stage ends with when nothing happens."""

    @functools.cache
    def undisturbed(column: str) -> dict[str, str]:
        out = str(tmp_path_factory.mktemp("calm") / "run")
        work.run(column, out)
        return outcome(out)

    return undisturbed


@pytest.fixture(scope="module")
def store():
    with failing_s3() as server:
        yield server


@pytest.mark.parametrize("column", COLUMNS)
def test_a_driver_killed_again_and_again(work, calm, column, tmp_path):
    """Each time a few files later than before, amid one of them."""
    out, kills, kept = str(tmp_path / "run"), 0, {}
    if column == "evaluation":
        work.copy_base(out)
    while killed_at(3 * kills + 2, lambda: work.run(column, out)):
        kills += 1
        now = committed(out)
        assert kept.items() <= now.items(), "what was committed was made again"
        kept = now
    assert kept.items() <= committed(out).items()
    assert outcome(out) == calm(column)
    print({"column": column, "kills": kills})
    assert kills >= 2


@pytest.mark.parametrize("column", COLUMNS)
def test_a_disk_that_fills_up(work, calm, column, tmp_path):
    out, refusals, kept = str(tmp_path / "run"), 0, {}
    if column == "evaluation":
        work.copy_base(out)

    def full() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    while True:
        real = with_fault(3 * refusals + 2, full, for_ever=True)
        try:
            work.run(column, out)
            break
        except UserError as error:
            assert "disk full while writing" in str(error) and "\n" not in str(error)
        finally:
            local_disk.replace = real
        refusals += 1
        now = committed(out)
        assert kept.items() <= now.items(), "what was committed was made again"
        assert not [path for path in tmp_path.rglob(f"*{local_disk.TEMP_MARK}*")]
        kept = now
    assert kept.items() <= committed(out).items()
    assert outcome(out) == calm(column)
    print({"column": column, "refusals": refusals})
    assert refusals >= 2


@pytest.mark.parametrize("column", COLUMNS)
def test_a_store_that_fails_now_and_then(work, calm, column, store):
    """Every fifth request; the client's own tries are enough, so that the stage ends as if nothing had been."""
    out = f"s3://faults/now-and-then/{column}"
    store.failed.clear()
    store.every = 5
    try:
        work.run(column, out)
    finally:
        store.every = 0
    assert outcome(out) == calm(column)
    print({"column": column, "failed": len(store.failed)})
    assert {way for way, _ in store.failed} == set(WAYS)


@pytest.fixture
def fresh(store):
    """Clients that read the environment anew."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    store.failed.clear()
    yield store
    store.left = None
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize("column", COLUMNS)
def test_a_store_that_goes_down(work, calm, column, fresh, monkeypatch):
    """It answers the first requests of a stage, and then none: the stage ends in one line, and later goes on."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    out = f"s3://faults/down/{column}"
    if column == "evaluation":
        work.copy_base(out)
    for requests in (10, 30):
        fresh.left = requests
        with pytest.raises(UserError, match="cannot reach s3://faults/down/") as error:
            work.run(column, out)
        assert "\n" not in str(error.value) and "run the same command again" in str(error.value)
        fresh.left = None
        # It could not be given back; of another process it would be known that it has ended.
        files.remove_tree(lease.path(Run(out)))
    work.run(column, out)
    assert outcome(out) == calm(column)


@pytest.mark.parametrize("tries", [None, 3, 7])
def test_a_store_is_asked_as_often_as_its_client_was_told(fresh, monkeypatch, tries):
    """Five times by default: there is no loop of ours around the client's."""
    if tries:
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", str(tries))
    files.write_atomic("s3://faults/a", b"x")
    fresh.left = 0
    with pytest.raises(UserError, match=r"cannot reach s3://faults/a .*Service Unavailable"):
        files.read_bytes("s3://faults/a", 0, 1)
    assert fresh.failed == [("busy", "GET")] * (tries or 5)


def test_a_source_that_may_not_be_written_is_enough(work, calm, tmp_path):
    """Without the right to write into source, prior and base; as root, whom rights do not stop, nothing has changed."""
    out, folders = str(tmp_path / "run"), [work.tree, f"{work.prior}-8", f"{work.prior}-16", work.base, work.teacher]
    before = [snapshot(Path(folder)) for folder in folders]
    paths = [path for folder in folders for path in (Path(folder), *Path(folder).rglob("*"))]
    rights = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(rights[path] & ~0o222)
    try:
        for column in COLUMNS:
            work.run(column, f"{out}-{column}")
            assert outcome(f"{out}-{column}") == calm(column)
    finally:
        for path in paths:
            path.chmod(rights[path])
    assert [snapshot(Path(folder)) for folder in folders] == before


NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
LOST = 5


@pytest.fixture(scope="module")
def nodes():
    """A cluster, and its nodes of one logical CPU each beside the head, which has none."""
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    ray.shutdown()
    head = NODE | {"num_cpus": 0, "include_dashboard": False}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    added = [cluster.add_node(**NODE) for _ in range(LOST + 2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        patch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "8")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
        patch.delenv("RAYDD_OWN_RAY", raising=False)
        patch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
        ray.cloudpickle.register_pickle_by_value(fault_work)
        yield cluster, added
        ray.cloudpickle.unregister_pickle_by_value(fault_work)
    ray.shutdown()
    cluster.shutdown()


def finish(work: Work, column: str, out: str) -> None:
    """Bring the run to its end in this process, which must find nothing to do again."""
    made = committed(out)
    work.run(column.split()[0], out)
    assert made.items() <= committed(out).items()


@pytest.mark.timeout(600)
def test_killed_scorers_and_their_lost_node(work, calm, nodes, tmp_path, monkeypatch):
    run = str(tmp_path / "run")

    def doom(stream: ScoreStream, *rest) -> None:
        tables = tuple((table, DoomedLoad(load, str(tmp_path))) for table, load in stream.tables)
        stream_scores(dataclasses.replace(stream, tables=tables), *rest)

    monkeypatch.setattr("raydd.pipelines.score.stream_scores", doom)
    work.run("scoring", run, Resources(workers=2))
    assert outcome(run) == calm("scoring")
    begun = {path.name: len(path.read_bytes()) for path in tmp_path.glob("class-*")}
    print(begun)
    # What was in hand, or computed and not fetched yet, when one died: at most all three shards.
    assert begun["class-0"] >= 2 and begun["class-1"] >= 2 and sum(begun.values()) <= 3 * (1 + 2)


@pytest.mark.timeout(600)
def test_killed_workers_and_their_lost_nodes(work, calm, nodes, tmp_path):
    """Units of every stage in one worker group; of each stage one dies by itself, and then with its node."""
    both = ("process", "raylet")
    fates = {"NOpt": both, "LD3M": both, "doping model": both[:1], "doping": both[1:], "evaluation": both}
    units, doomed, told = [], {}, []
    for column in fates:
        found = collect(work, column, str(tmp_path / column))
        units += [Doomed(unit, fates[column] if unit is found[0] else (), str(tmp_path)) for unit in found]
        doomed[column] = units[-len(found)]
    run_units(
        units,
        Resources(workers=2),
        "units",
        storage=str(tmp_path / "train"),
        on_event=lambda unit, event, facts: told.append((unit.name, event, facts)),
    )
    # Tries may be more: a doomed unit is sometimes what the other worker had in hand.
    assert {column: unit.met for column, unit in doomed.items()} == {c: len(f) for c, f in fates.items()}
    begun = sum(unit.tries for unit in units)
    deaths = sum(len(f) for f in fates.values())
    print({"units": len(units), "begun": begun, "deaths": deaths})
    # A death costs the unit that died and what the other worker had in hand.
    assert begun <= len(units) + 2 * deaths
    crashes = [name for name, event, facts in told if event == "unit_retried" and facts["crashed"]]
    assert sorted(crashes) == sorted(unit.name for column, unit in doomed.items() if "process" in fates[column])
    for column in fates:
        finish(work, column, str(tmp_path / column))
        assert outcome(str(tmp_path / column)) == calm(column.split()[0])


@pytest.mark.timeout(600)
def test_a_preemption_notice_saves_half_done_units(work, calm, nodes, tmp_path):
    """Both workers hear of it and save at once; the machine goes; both go on from what they saved."""
    cluster, added = nodes
    columns = ("NOpt", "LD3M")
    units = [Doomed(collect(work, column, str(tmp_path / column))[0], ("notice",), str(tmp_path)) for column in columns]
    victims = [cluster.add_node(**NODE)]
    failed = []

    def run() -> None:
        try:
            run_units(units, Resources(workers=2), "units", storage=str(tmp_path / "train"))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 240
    while not all(unit.node for unit in units):
        assert thread.is_alive() and time.monotonic() < deadline, failed
        time.sleep(0.1)
    victim = next(node for node in [*added, *victims] if node.node_id == units[0].node)
    # Long enough that both have saved before the machine goes, however slow this one is.
    drain(cluster.address, victim.node_id, seconds=60)
    states = [
        tmp_path / column / "state" / f"class-{unit.unit.key}.safetensors" for column, unit in zip(columns, units)
    ]
    while not all(state.exists() for state in states):
        assert thread.is_alive() and time.monotonic() < deadline, failed
        time.sleep(0.1)
    cluster.remove_node(victim, allow_graceful=False)
    thread.join(max(1.0, deadline - time.monotonic()))
    assert not thread.is_alive() and failed == [] and [unit.tries for unit in units] == [2, 2]
    for column in columns:
        told = [event["event"] for event in events.read(Run(str(tmp_path / column)))]
        assert told.count("unit_preempted") == told.count("unit_resumed") == 1
        finish(work, column, str(tmp_path / column))
        assert outcome(str(tmp_path / column)) == calm(column)


def drain(address: str, node: str, seconds: float) -> None:
    """Tell Ray that a spot machine will be taken away."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=address).drain_node(node, reason, "spot", int((time.time() + seconds) * 1000))
    assert accepted, why
