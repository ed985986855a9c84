"""The KubeRay files: an allow-list schema of the keys that we use, and our own rules.

The keys were read in KubeRay's v1 types (v1.7); everything else is refused, because Kubernetes drops what it does not
know without a word, and `maxReplica` would mean "without limit". Pods have far more keys than these.
"""

from collections.abc import Iterator
from typing import Any

import jsonschema
from cluster_files import derived, most, ray_pin
from safety_rules import unsafe

TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}


def keys(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    """An object with these keys and no others."""
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


def many(item: dict[str, Any], least: int = 1) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": least}


QUANTITIES = keys(
    {"cpu": {"type": "string", "pattern": r"^\d+$"}, "memory": {"type": "string", "pattern": r"^\d+Gi$"}},
    **{"nvidia.com/gpu": COUNT},
)
CONTAINER = keys(
    {"name": TEXT, "image": TEXT, "resources": keys({"requests": QUANTITIES, "limits": QUANTITIES})},
    env=many(keys({"name": TEXT, "value": TEXT})),
    ports=many(keys({"name": {"enum": ["gcs", "dashboard"]}, "containerPort": COUNT})),
)
POD = keys(
    {
        "serviceAccountName": TEXT,
        "restartPolicy": {"const": "Never"},
        "nodeSelector": TEXTS,
        # Further containers would see the token and the service account.
        "containers": many(CONTAINER) | {"maxItems": 1},
    },
    tolerations=many(keys({"key": TEXT, "operator": {"const": "Exists"}, "effect": {"const": "NoSchedule"}})),
)
TEMPLATE = keys({"spec": POD})
HEAD = keys({"rayStartParams": keys({"num-cpus": {"const": "0"}}), "template": TEMPLATE})
GROUP = keys(
    {
        "groupName": TEXT,
        "replicas": {"const": 0},
        "minReplicas": {"const": 0},
        "maxReplicas": {"type": "integer", "minimum": 1, "maximum": 1000},
        "rayStartParams": keys({}),
        "template": TEMPLATE,
    }
)
CLUSTER = keys(
    {
        "rayVersion": TEXT,
        "authOptions": keys({"mode": {"const": "token"}}),
        "enableInTreeAutoscaling": {"const": True},
        "autoscalerOptions": keys(
            {
                "version": {"const": "v2"},
                "upscalingMode": {"enum": ["Default", "Conservative"]},
                "idleTimeoutSeconds": {"type": "integer", "minimum": 60, "maximum": 900},
            }
        ),
        "headGroupSpec": HEAD,
        "workerGroupSpecs": many(GROUP),
    }
)
JOB = keys(
    {
        "entrypoint": TEXT,
        "submissionMode": {"const": "K8sJobMode"},
        "backoffLimit": COUNT,
        "activeDeadlineSeconds": {"type": "integer", "minimum": 1, "maximum": 30 * 24 * 3600},
        "shutdownAfterJobFinishes": {"const": True},
        "ttlSecondsAfterFinished": COUNT,
        "rayClusterSpec": CLUSTER,
    }
)
SPECS = {"RayCluster": CLUSTER, "RayJob": JOB}


def check(resource: dict[str, Any]) -> None:
    """Raise `ValidationError` for a key or value that is not on the list."""
    spec = SPECS[resource["kind"]]
    kind = {"const": resource["kind"]}
    outer = {"apiVersion": {"const": "ray.io/v1"}, "kind": kind, "metadata": keys({"name": TEXT}), "spec": spec}
    jsonschema.validate(resource, keys(outer))


def cluster_of(resource: dict[str, Any]) -> dict[str, Any]:
    """The RayCluster that a resource is, or would make."""
    spec = resource["spec"].get("rayClusterSpec", resource["spec"])
    return {"metadata": dict(resource["metadata"]), "spec": spec}


def complaints(resource: dict[str, Any]) -> list[str]:
    """Everything that is wrong with a resource that fits the schema; [] if it may be used."""
    cluster = cluster_of(resource)
    return [*unsafe(resource), *_versions(cluster), *_pods(cluster), *_pools(cluster), *_limits(cluster)]


def _versions(cluster: dict[str, Any]) -> Iterator[str]:
    if cluster["spec"]["rayVersion"] != ray_pin():
        yield f"rayVersion is not Ray {ray_pin()}"


def _pods(cluster: dict[str, Any]) -> Iterator[str]:
    spec = cluster["spec"]
    pools = []
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        name = group.get("groupName", "head")
        pod = group["template"]["spec"]
        resources = pod["containers"][0]["resources"]
        pools.append(pod["nodeSelector"].get("raydd-pool", ""))
        if resources["requests"] != resources["limits"]:
            yield f"{name}: Ray counts limits, Kubernetes reserves requests"
        if bool(resources["limits"].get("nvidia.com/gpu")) != (pools[-1] == "gpu-spot"):
            yield f"{name}: GPUs are on the spot pool, and nothing else is"
        tolerated = {toleration["key"] for toleration in pod.get("tolerations", [])}
        if pools[-1] == "gpu-spot" and not tolerated >= {"nvidia.com/gpu", "raydd-spot"}:
            yield f"{name}: the pool's taints keep it out"
    if len(set(pools)) != len(pools):
        yield "two groups share a pool of nodes"


def _pools(cluster: dict[str, Any]) -> Iterator[str]:
    kinds = derived(cluster)["available_node_types"].values()
    gpus = [kind["resources"].get("GPU") for kind in kinds if kind["max_workers"]]
    if not any(gpus):
        yield "no group with GPUs"
    if all(gpus):
        yield "no group without GPUs to decode on"


def _limits(cluster: dict[str, Any]) -> Iterator[str]:
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    told = {variable["name"]: variable["value"] for variable in head.get("env", [])}
    for resource in ("CPU", "GPU"):
        if told.get(f"RAYDD_MAX_{resource}S") != str(most(derived(cluster), resource)):
            yield f"jobs are told of another number of {resource}s than the groups have"
