"""The files of cluster/ as values, with mistakes planted on request, and what Ray's own autoscaler makes of them."""

import copy
import functools
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"
PINS = [line for line in (FOLDER / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name: str) -> dict[str, Any]:
    """A YAML file of cluster/."""
    return copy.deepcopy(_parsed(name))


@functools.cache
def _parsed(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def ray_pin() -> str:
    """The Ray that images hold: the lowest release that pyproject.toml allows, which is the one that tests run on."""
    (ray,) = (line for line in PROJECT["dependencies"] if line.startswith("ray["))
    return re.search(r">=(\d+\.\d+)\b", ray)[1] + ".0"


def planted(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one place set (a path like `a.b.0.c`), or taken out where the value is `...`."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    place: Any = config
    for part in parents:
        place = place[int(part) if isinstance(place, list) else part]
    if value is ...:
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return config


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """A launcher file with Ray's defaults filled in, checked against Ray's own schema."""
    util = pytest.importorskip("ray.autoscaler._private.util")
    config = util.prepare_config(copy.deepcopy(config))
    util.validate_config(config)
    return config


def derived(cluster: dict[str, Any]) -> dict[str, Any]:
    """What Ray's autoscaler reads out of a RayCluster, checked against Ray's own schema."""
    kuberay = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    return kuberay._derive_autoscaling_config_from_ray_cr(planted(cluster, "metadata.namespace", "default"))


def launches(config: dict[str, Any], demand: dict[str, float], count: int) -> Counter:
    """How many nodes of each type Ray's autoscaler starts for `count` tasks or actors, from nothing but the head."""
    scheduler = pytest.importorskip("ray.autoscaler.v2.scheduler")
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    wanted = AutoscalingConfig(config, skip_content_hash=True)
    request = scheduler.SchedulingRequest(
        disable_launch_config_check=True,
        node_type_configs=wanted.get_node_type_configs(),
        max_num_nodes=wanted.get_max_num_nodes(),
        resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make(demand)] * count),
    )
    made = scheduler.ResourceDemandScheduler(None).schedule(request).to_launch
    return Counter({launch.instance_type: launch.count for launch in made})


def most(config: dict[str, Any], resource: str) -> int:
    """What all worker types of a launcher file, or of `derived`, hold together at their largest."""
    types = config["available_node_types"].values()
    return sum(kind["resources"].get(resource, 0) * kind["max_workers"] for kind in types)
