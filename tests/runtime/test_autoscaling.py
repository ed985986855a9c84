"""From no GPU node to two and back to none, with Ray's own autoscaler; the nodes and their GPUs are only numbers.

Ray's `AutoscalingCluster` is not used: a file that it needs is not in the wheel, and it stops every Ray of the user.
"""

import contextlib
import dataclasses
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
import toy_units
import yaml
from toy_units import Toy

from raydd.runtime.execute import run_units
from raydd.runtime.work import Resources

pytestmark = pytest.mark.cluster

IDLE_S = 4.0
NODES = 2
PATIENCE_S = 60.0
MEMORY = {"object_store_memory": 100 * 2**20}
# Sections that the autoscaler wants to see, and does not use for nodes that are processes.
EMPTY = {
    "auth": {},
    "docker": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def write_config(path: Path, address: str, head: str) -> str:
    """A cluster of a head without GPUs and up to `NODES` nodes of one GPU, none at the beginning."""
    provider = {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "gcs_address": address,
        "head_node_id": head,
        "use_node_id_as_ip": True,
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
        "launch_multiple": True,
    }
    gpu = {"resources": {"CPU": 1, "GPU": 1, **MEMORY}, "node_config": {}, "min_workers": 0, "max_workers": NODES}
    config = {
        "cluster_name": "toys",
        "max_workers": NODES,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": provider,
        # By any other name of the head the autoscaler fails, and only its log says so.
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": gpu,
        },
        "head_node_type": "ray.head.default",
        "rsync_exclude": [],
        "rsync_filter": [],
        **{f"{name}_commands": [] for name in COMMANDS},
        **EMPTY,
    }
    path.write_text(yaml.safe_dump(config))
    return str(path)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def processes(mark: str) -> list[int]:
    """Living processes with `mark` in their command line."""
    found = []
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if place.name.isdecimal() and mark.encode() in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


@pytest.fixture
def growing(no_ray, tmp_path, monkeypatch):
    """A head whose autoscaler may add GPU nodes; RAY_ADDRESS and what `cluster/` tells its drivers point at it."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    provider = pytest.importorskip("ray.autoscaler._private.fake_multi_node.node_provider")
    from ray._private.services import get_node_ip_address

    head, port = provider.FAKE_HEAD_NODE_ID, free_port()
    config = write_config(tmp_path / "cluster.yaml", f"{get_node_ip_address()}:{port}", head)
    for name, value in {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": head,
        "RAYDD_MAX_CPUS": str(1 + NODES),
        "RAYDD_MAX_GPUS": str(NODES),
    }.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:
        patch.setenv("RAY_OVERRIDE_NODE_ID_FOR_TESTING", head)
        options = {"num_cpus": 1, "include_dashboard": False, "autoscaling_config": config, "gcs_server_port": port}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={**options, **MEMORY})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    for module in (toy_units, sys.modules[__name__]):
        no_ray.cloudpickle.register_pickle_by_value(module)
    session = cluster.head_node.get_session_dir_path()
    yield
    no_ray.shutdown()
    cluster.shutdown()
    # The provider's nodes are children of the autoscaler: what outlives it belongs to this session only.
    for pid in processes(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@dataclasses.dataclass(frozen=True)
class OnGpu(Toy):
    """Notes how many GPUs it was given."""

    def run(self, context):
        import ray

        with open(f"{self.folder}/gpus", "a") as file:
            file.write(f"{ray.get_runtime_context().get_assigned_resources().get('GPU')}\n")
        super().run(context)


class Counts:
    """How many GPUs there are, seen several times per second from the beginning to the end of a block."""

    def __enter__(self):
        self.seen, self.stopped, self.start = [], threading.Event(), time.monotonic()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.stopped.wait(0.2):
            self.seen.append((time.monotonic() - self.start, self.now()))

    def now(self) -> int:
        import ray

        return int(sum(node["Resources"].get("GPU", 0) for node in ray.nodes() if node["Alive"]))

    def __exit__(self, *error):
        self.stopped.set()
        self.thread.join()


def test_nodes_come_for_the_work_and_go_when_it_is_done(growing, tmp_path):
    from raydd.runtime import cluster

    cluster.connect()
    units = [OnGpu(f"u{i}", str(tmp_path), seconds=0.5) for i in range(6)]
    with Counts() as gpus:
        assert gpus.now() == 0
        run_units(units, Resources(), "toys", storage=str(tmp_path / "state"))
        worked = time.monotonic() - gpus.start
        while gpus.now() and time.monotonic() < gpus.start + worked + PATIENCE_S:
            time.sleep(0.2)
        assert gpus.now() == 0
        down = time.monotonic() - gpus.start - worked
    up = next(when for when, count in gpus.seen if count == NODES)
    print(f"0 to {NODES} GPU nodes in {up:.1f} s, work done after {worked:.1f} s, back to 0 in {down:.1f} s")
    assert max(count for _, count in gpus.seen) == NODES
    assert all(unit.tries == 1 for unit in units)
    assert set((tmp_path / "gpus").read_text().split()) == {"1.0"}
