"""The KubeRay files hold only keys that we know, fit our rules, and each planted mistake is caught.

What Ray's own autoscaler reads out of them, and would start, is asked of its own code.
"""

import jsonschema
import pytest
from cluster_files import derived, launches, planted, read
from kuberay_rules import check, cluster_of, complaints

FILES = {"kuberay-raycluster.yaml": "spec", "kuberay-rayjob.yaml": "spec.rayClusterSpec"}
HEAD, GPU = "headGroupSpec", "workerGroupSpecs.1"
POD = "template.spec"

UNKNOWN = [
    (f"{GPU}.maxReplica", 8),
    (f"{GPU}.maxReplicas", ...),
    (f"{GPU}.minReplicas", 1),
    (f"{GPU}.replicas", 1),
    (f"{GPU}.maxReplicas", 100000),
    (f"{HEAD}.rayStartParams", {}),
    (f"{HEAD}.rayStartParams", {"num-cpus": "0", "dashboard-host": "0.0.0.0"}),
    (f"{HEAD}.rayStartParams.num-cpus", 0),
    (f"{HEAD}.serviceType", "LoadBalancer"),
    (f"{HEAD}.enableIngress", True),
    (f"{HEAD}.{POD}.hostNetwork", True),
    (f"{HEAD}.{POD}.restartPolicy", "Always"),
    (f"{GPU}.{POD}.serviceAccountName", ...),
    (f"{GPU}.{POD}.volumes", [{"name": "x", "hostPath": {"path": "/data"}}]),
    (f"{GPU}.{POD}.containers.0.resources.limits.memory", "26G"),
    (f"{GPU}.{POD}.containers.0.resources.limits", ...),
    (f"{GPU}.{POD}.containers.0.securityContext", {"privileged": True}),
    ("enableInTreeAutoscaling", False),
    ("enableInTreeAutoscaling", ...),
    ("authOptions", ...),
    ("authOptions.mode", "disabled"),
    ("autoscalerOptions.version", "v1"),
    ("autoscalerOptions.idleTimeoutSeconds", 86400),
    ("autoscalerOptions.idleTimeoutSecond", 60),
]
WRONG = [
    ("rayVersion", "2.61.0", "rayVersion"),
    (f"{HEAD}.{POD}.containers.0.image", "REGISTRY/raydd:latest", "is not Ray 2.60.0"),
    (f"{GPU}.{POD}.containers.0.image", "rayproject/ray:2.60.0-py311-gpu-extra", "is not Ray 2.60.0"),
    (f"{HEAD}.{POD}.containers.0.env", ..., "another number of GPUs"),
    (f"{GPU}.maxReplicas", 9, "another number of GPUs"),
    ("workerGroupSpecs.0.maxReplicas", 9, "another number of CPUs"),
    (f"{GPU}.{POD}.containers.0.resources.requests.cpu", "1", "Kubernetes reserves requests"),
    (f"{GPU}.{POD}.nodeSelector", {"raydd-pool": "gpu"}, "gpu: GPUs are on the spot pool"),
    (f"{HEAD}.{POD}.nodeSelector", {"raydd-pool": "gpu-spot"}, "head: GPUs are on the spot pool"),
    (f"{HEAD}.{POD}.nodeSelector", {"raydd-pool": "cpu"}, "share a pool"),
    (f"{GPU}.{POD}.tolerations", ..., "taints keep it out"),
    (f"{HEAD}.{POD}.containers.0.env.0", {"name": "RAY_AUTH_TOKEN", "value": "0f" * 20}, "secret"),
    (f"{HEAD}.{POD}.containers.0.env.0", {"name": "OUT", "value": "/home/ann/out"}, "path of one machine"),
]


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_on_the_list_and_fits_our_rules(name):
    check(read(name))
    assert complaints(read(name)) == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("path", "value"), UNKNOWN)
def test_an_unknown_key_or_value_is_refused(name, path, value):
    with pytest.raises(jsonschema.ValidationError):
        check(planted(read(name), f"{FILES[name]}.{path}", value))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(("path", "value", "said"), WRONG)
def test_a_mistake_is_caught(name, path, value, said):
    wrong = planted(read(name), f"{FILES[name]}.{path}", value)
    check(wrong)
    assert any(said in complaint for complaint in complaints(wrong)), complaints(wrong)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.shutdownAfterJobFinishes", False),
        ("spec.shutdownAfterJobFinishes", ...),
        ("spec.activeDeadlineSeconds", ...),
        ("spec.activeDeadlineSeconds", 10**9),
        ("spec.backoffLimits", 3),
        ("spec.submissionMode", "HTTPMode"),
        ("spec.entrypoints", "python x.py"),
        ("kind", "RayCluster"),
        ("apiVersion", "ray.io/v1alpha1"),
        ("metadata.namespaces", "x"),
    ],
)
def test_a_mistake_in_the_job_is_refused(path, value):
    with pytest.raises(jsonschema.ValidationError):
        check(planted(read("kuberay-rayjob.yaml"), path, value))


def test_the_job_gets_the_same_cluster():
    assert read("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"] == read("kuberay-raycluster.yaml")["spec"]


@pytest.mark.parametrize("name", FILES)
def test_work_starts_the_pods_that_it_is_meant_for(name):
    config = derived(cluster_of(read(name)))
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"]["CPU"] == 0 and head["max_workers"] == 0
    assert config["idle_timeout_minutes"] == 5
    assert launches(config, {"GPU": 1}, 3) == {"gpu": 3}
    assert launches(config, {"CPU": 1}, 16) == {"cpu": 2}
