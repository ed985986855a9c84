"""The launcher files fit Ray's schema and our rules; each planted mistake is caught by the one or the other.

What Ray's own autoscaler would start is asked of its scheduler, with our files.
"""

import jsonschema
import pytest
from cluster_files import launches, most, planted, prepared, read
from launcher_rules import complaints

FILES = ("aws.yaml", "gcp.yaml")
GPU, CPU, HEAD = (f"available_node_types.{name}" for name in ("gpu", "cpu", "head"))
START = "head_start_ray_commands.1"

# The place, the mistake, and what is said of it.
BOTH = [
    (f"{HEAD}.resources.CPU", 8, "head: work"),
    (f"{HEAD}.max_workers", 1, "head: work"),
    (START, "ray start --head --dashboard-host=127.0.0.1", "head: work"),
    (f"{GPU}.min_workers", 1, "gpu: stays"),
    (f"{CPU}.min_workers", 2, "cpu: stays"),
    (f"{GPU}.max_workers", 0, "gpu: can never start"),
    (f"{GPU}.max_workers", 80, "max_workers is not the sum"),
    (f"{GPU}.labels", {"market": "spot"}, "gpu: raydd asks"),
    (f"{GPU}.resources", {"CPU": 8, "GPU": 1, "spot": 1}, "gpu: raydd asks"),
    (f"{GPU}.resources", {"CPU": 8, "GPU": 4}, "another number of GPUs"),
    (f"{CPU}.resources", {"CPU": 16, "GPU": 1}, "no pool without GPUs"),
    (f"{CPU}.resources", {"CPU": 32}, "another number of CPUs"),
    ("max_workers", 100, "max_workers is not the sum"),
    ("idle_timeout_minutes", 600, "idle nodes go too late"),
    ("provider.cache_stopped_nodes", ..., "nodes are stopped"),
    ("setup_commands", ..., "installed beside the image"),
    ("setup_commands", ["pip install raydd"], "installed beside the image"),
    ("head_setup_commands", ..., "installed beside the image"),
    ("head_start_ray_commands", ..., "the dashboard is open"),
    (START, "ray start --head --num-cpus=0 --dashboard-host=0.0.0.0", "open to every address"),
    (START, "ray start --head --num-cpus=0 --dashboard-host 10.0.0.1", "the dashboard is open"),
    (START, "ray start --head --num-cpus=0 --dashboard-host=127.0.0.1", "would never start a worker"),
    ("docker.image", "REGISTRY/raydd:latest", "is not Ray 2.60.0"),
    ("docker.image", "rayproject/ray:2.61.0-py311-gpu", "is not Ray 2.60.0"),
    ("docker.head_run_options", ..., "another number of GPUs"),
    ("docker.run_options.2", "-e RAY_AUTH_MODE=disabled", "without the token"),
    ("docker.run_options", ["-e AWS_DEFAULT_REGION=us-west-2"], "without the token"),
    ("file_mounts", {}, "without the token"),
    ("file_mounts", {"~/.raydd-token": "/home/ann/token"}, "path of one machine"),
    ("file_mounts", {"~/.raydd-token": "secrets"}, "not everybody has"),
    ("docker.run_options.0", "-e RAY_AUTH_TOKEN=" + "0f" * 20, "secret"),
    ("docker.run_options.0", "-e AWS_ACCESS_KEY_ID=AKIA" + "A" * 16, "secret"),
    ("docker.run_options.0", "-e HF_TOKEN=hf_" + "a" * 30, "secret"),
    ("auth.ssh_private_key", "/root/.ssh/id_rsa", "path of one machine"),
    ("initialization_commands.0", "curl -fsSL x -o get-docker.sh", "fetched beside the image"),
]
AWS = [
    (f"{GPU}.node_config.InstanceMarketOptions", ..., "not spot"),
    (f"{HEAD}.node_config.InstanceMarketOptions", {"MarketType": "spot"}, "head: may not be spot"),
    (f"{GPU}.node_config.IamInstanceProfile", ..., "gpu: no role"),
    (f"{CPU}.node_config.ImageId", ..., "cpu: Ray would choose"),
    (f"{GPU}.node_config.MetadataOptions.HttpTokens", "optional", "without a session"),
    (f"{GPU}.node_config.BlockDeviceMappings.0.Ebs.DeleteOnTermination", False, "its disk outlives it"),
    ("provider.security_group", ..., "SSH to every address"),
    ("provider.region", "eu-west-1", "the region is not the same"),
    ("provider.availability_zone", "us-west-2a,us-west-1b", "the region is not the same"),
]
GCP = [
    (f"{GPU}.node_config.scheduling", ..., "not spot"),
    (f"{GPU}.node_config.scheduling", [{"preemptible": True}], "scheduling is an object"),
    (f"{GPU}.node_config.scheduling.onHostMaintenance", "MIGRATE", "cannot migrate"),
    (f"{HEAD}.node_config.scheduling", {"provisioningModel": "SPOT"}, "head: may not be spot"),
    (f"{CPU}.node_config.serviceAccounts", ..., "cpu: no account"),
    (f"{GPU}.node_config.disks.0.autoDelete", False, "its disk outlives it"),
    ("provider.region", "us-east1", "the region is not the same"),
    ("provider.availability_zone", "us-central1-b", "its disk is in another zone"),
]
MISTAKES = [
    *((name, *mistake) for name in FILES for mistake in BOTH),
    *(("aws.yaml", *mistake) for mistake in AWS),
    *(("gcp.yaml", *mistake) for mistake in GCP),
]


@pytest.mark.parametrize("name", FILES)
def test_the_file_fits_rays_schema_and_our_rules(name):
    assert complaints(prepared(read(name))) == []


@pytest.mark.parametrize(("name", "path", "value", "said"), MISTAKES)
def test_a_mistake_is_caught(name, path, value, said):
    found = complaints(prepared(planted(read(name), path, value)))
    assert any(said in complaint for complaint in found), found


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("max_worker", 3, "max_worker"),
        ("available_node_types.gpu.minworkers", 0, "minworkers"),
        ("available_node_types.gpu.resources", ..., "resources"),
        ("available_node_types.gpu.resources.GPU", 0.5, "0.5"),
        ("idle_timeout_minutes", "5", "5"),
        ("docker.imagee", "x", "imagee"),
        ("auth.ssh_users", "x", "ssh_users"),
    ],
)
def test_a_misspelling_is_caught_by_rays_schema(name, path, value, said):
    with pytest.raises(jsonschema.ValidationError, match=said):
        prepared(planted(read(name), path, value))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("path", "value"), [("head_node_type", "heat"), ("available_node_types.cpu.min_workers", 13), ("docker.image", ...)]
)
def test_what_does_not_belong_together_is_caught_by_ray(name, path, value):
    with pytest.raises((ValueError, AssertionError)):
        prepared(planted(read(name), path, value))


@pytest.mark.parametrize("name", FILES)
def test_work_starts_the_nodes_that_it_is_meant_for(name):
    """A scoring actor or a unit asks for a GPU and no CPU, a decoding task for a CPU."""
    config = prepared(read(name))
    assert launches(config, {"GPU": 1}, 3) == {"gpu": 3}
    assert launches(config, {"GPU": 1}, 1000) == {"gpu": most(config, "GPU")}
    assert launches(config, {"CPU": 1}, 1) == {"cpu": 1}
    assert launches(config, {"CPU": 1}, 64) == {"cpu": 4}


@pytest.mark.parametrize("name", FILES)
def test_both_clouds_get_the_same_cluster(name):
    ours, first = prepared(read(name)), prepared(read(FILES[0]))
    for key in ("cluster_name", "max_workers", "idle_timeout_minutes", "head_start_ray_commands", "file_mounts"):
        assert ours[key] == first[key]
    for kind, settings in ours["available_node_types"].items():
        same = first["available_node_types"][kind]
        assert {key: settings[key] for key in ("resources", "max_workers")} == {
            key: same[key] for key in ("resources", "max_workers")
        }
