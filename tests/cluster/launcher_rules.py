"""Our own rules for the launcher files, beyond Ray's schema: what they cost, who may reach them, what runs where.

They look at the file with Ray's defaults filled in, because what is left out is often worse than what is written.
"""

import re
import shlex
from collections.abc import Iterator
from typing import Any

from cluster_files import most
from safety_rules import unsafe

IDLE_MINUTES = range(1, 16)


def complaints(config: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a prepared launcher file; [] if it may be used."""
    rules = (_head, _workers, _pools, _costs, _commands, _token, _limits, PROVIDERS[config["provider"]["type"]])
    return [*unsafe(config), *(complaint for rule in rules for complaint in rule(config))]


def _types(config: dict[str, Any]) -> dict[str, Any]:
    return config["available_node_types"]


def workers(config: dict[str, Any]) -> dict[str, Any]:
    """The node types that come and go."""
    return {name: kind for name, kind in _types(config).items() if name != config["head_node_type"]}


def is_spot(kind: dict[str, Any]) -> bool:
    """Whether a node type is bought on the spot market, on either cloud."""
    node = kind["node_config"]
    scheduling = node.get("scheduling", {})
    aws = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return aws or (isinstance(scheduling, dict) and scheduling.get("provisioningModel") == "SPOT")


def _head(config: dict[str, Any]) -> Iterator[str]:
    head = _types(config)[config["head_node_type"]]
    if head["resources"] != {"CPU": 0} or not _starts_with(config, "--num-cpus=0") or head["max_workers"]:
        yield "head: work could run there"
    if is_spot(head):
        yield "head: may not be spot, its loss ends every job"


def _workers(config: dict[str, Any]) -> Iterator[str]:
    for name, kind in workers(config).items():
        if kind["min_workers"]:
            yield f"{name}: stays when nobody needs it"
        if kind["max_workers"] < 1:
            yield f"{name}: can never start"
        if set(kind["resources"]) - {"CPU", "GPU"} or kind.get("labels"):
            yield f"{name}: raydd asks for CPUs and GPUs only"


def _pools(config: dict[str, Any]) -> Iterator[str]:
    kinds = workers(config).values()
    gpu = [kind for kind in kinds if kind["resources"].get("GPU")]
    if not gpu or not all(map(is_spot, gpu)):
        yield "no spot pool of GPUs, or one that is not spot"
    if len(gpu) == len(kinds):
        yield "no pool without GPUs to decode on"


def _costs(config: dict[str, Any]) -> Iterator[str]:
    if config["max_workers"] != sum(kind["max_workers"] for kind in workers(config).values()):
        yield "max_workers is not the sum of the types'"
    if config["idle_timeout_minutes"] not in IDLE_MINUTES:
        yield "idle nodes go too late, or before the next stage"
    if config["provider"].get("cache_stopped_nodes", True):
        yield "nodes are stopped, and their disks paid for"


def _commands(config: dict[str, Any]) -> Iterator[str]:
    if any(config[f"{who}setup_commands"] for who in ("", "head_", "worker_")):
        yield "something is installed beside the image"
    if not _starts_with(config, "--dashboard-host=127.0.0.1"):
        yield "the dashboard is open to more than the head"
    if not _starts_with(config, "--autoscaling-config=~/ray_bootstrap_config.yaml"):
        yield "the head would never start a worker"
    text = "\n".join(config["initialization_commands"])
    if re.search(r"curl|wget|pip install|apt", text):
        yield "something is fetched beside the image"


def _starts_with(config: dict[str, Any], option: str) -> bool:
    return any(option in shlex.split(line) for line in config["head_start_ray_commands"] if "ray start" in line)


def _environment(options: list[str]) -> dict[str, str]:
    pairs = (option.removeprefix("-e ").split("=", 1) for option in options if option.startswith("-e "))
    return {name: value for name, value in pairs}


def _token(config: dict[str, Any]) -> Iterator[str]:
    docker = config["docker"]
    environment = _environment(docker.get("run_options", []))
    folders = [remote.replace("~", "/home/ray") for remote in config["file_mounts"]]
    path = environment.get("RAY_AUTH_TOKEN_PATH", "")
    if environment.get("RAY_AUTH_MODE") != "token" or path.rsplit("/", 1)[0] not in folders:
        yield "nodes start without the token"
    if not all(local.startswith("~/") for local in config["file_mounts"].values()):
        yield "a folder is copied that not everybody has"


def _limits(config: dict[str, Any]) -> Iterator[str]:
    told = _environment(config["docker"].get("head_run_options", []))
    for resource in ("CPU", "GPU"):
        if told.get(f"RAYDD_MAX_{resource}S") != str(most(config, resource)):
            yield f"jobs are told of another number of {resource}s than the types have"


def _aws(config: dict[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    zones = provider["availability_zone"].split(",")
    told = _environment(config["docker"].get("run_options", [])).get("AWS_DEFAULT_REGION")
    regions = {told, *(zone[:-1] for zone in zones)}
    login = f"--region {provider['region']} "
    if regions != {provider["region"]} or not any(login in line for line in config["initialization_commands"]):
        yield "the region is not the same everywhere"
    if "GroupName" not in provider.get("security_group", {}) or "IpPermissions" in provider["security_group"]:
        yield "Ray would open SSH to every address"
    for name, kind in _types(config).items():
        node = kind["node_config"]
        if "IamInstanceProfile" not in node:
            yield f"{name}: no role, so no bucket"
        if node.get("ImageId", "latest_dlami").lower() == "latest_dlami":
            yield f"{name}: Ray would choose a machine image with an old driver"
        if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name}: its role can be asked for without a session"
        if not all(disk["Ebs"].get("DeleteOnTermination") for disk in node.get("BlockDeviceMappings", [])):
            yield f"{name}: its disk outlives it"


def _gcp(config: dict[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    zone = provider["availability_zone"]
    if not zone.startswith(f"{provider['region']}-"):
        yield "the region is not the same everywhere"
    for name, kind in _types(config).items():
        node = kind["node_config"]
        if any(f"zones/{zone}/" not in disk["initializeParams"]["diskType"] for disk in node["disks"]):
            yield f"{name}: its disk is in another zone"
        if not all(disk["autoDelete"] for disk in node["disks"]):
            yield f"{name}: its disk outlives it"
        scheduling = node.get("scheduling", {})
        if not isinstance(scheduling, dict):
            yield f"{name}: scheduling is an object"
        elif kind["resources"].get("GPU") and scheduling.get("onHostMaintenance") != "TERMINATE":
            yield f"{name}: machines with GPUs cannot migrate"
        if name != config["head_node_type"] and "serviceAccounts" not in node:
            yield f"{name}: no account, so no bucket"


PROVIDERS = {"aws": _aws, "gcp": _gcp}
