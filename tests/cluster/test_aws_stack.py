"""Ray's own AWS code makes our cluster on a simulated EC2: what it starts, with which role, and who may connect.

`ray up` finds the security group and the roles of aws-stack.yaml, and Ray adds no rule of its own. The simulator
(moto) knows the instance types of EC2, but not what a role may do: permissions are compared as text.
"""

import fnmatch
import re

import pytest
from cluster_files import FOLDER, prepared, read

boto3 = pytest.importorskip("boto3")
moto = pytest.importorskip("moto")
NODES = ("head", "cpu", "gpu")


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    """A simulated account in which the stack exists, and Ray has prepared itself."""
    with pytest.MonkeyPatch.context() as patch, moto.mock_aws():
        home = tmp_path_factory.mktemp("home")
        # Ray and we share boto3's session, which must not outlive the simulated account.
        patch.setattr(boto3, "DEFAULT_SESSION", None)
        for name, value in (("HOME", home), ("AWS_DEFAULT_REGION", "us-west-2")):
            patch.setenv(name, str(value))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        ec2 = boto3.client("ec2")
        given = {"Bucket": "images", "Vpc": ec2.describe_vpcs()["Vpcs"][0]["VpcId"], "SshFrom": "203.0.113.7/32"}
        boto3.client("cloudformation").create_stack(
            StackName="raydd",
            TemplateBody=(FOLDER / "aws-stack.yaml").read_text(),
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in given.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        from ray.autoscaler._private.aws.config import bootstrap_aws

        yield ec2, bootstrap_aws(prepared(read("aws.yaml")))


@pytest.fixture(scope="module")
def started(account):
    """One running instance of every type, by type."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    ec2, config = account
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    found = {}
    for name in NODES:
        tags = {"ray-node-kind": "worker", "ray-user-node-type": name, "ray-launch-config": "x", "ray-node-name": name}
        (made,) = provider.create_node(config["available_node_types"][name]["node_config"], tags, 1)
        (found[name],) = ec2.describe_instances(InstanceIds=[made])["Reservations"][0]["Instances"]
    return found


def test_only_gpu_nodes_are_spot(started):
    assert {name: node.get("InstanceLifecycle") for name, node in started.items()} == {
        "head": None,
        "cpu": None,
        "gpu": "spot",
    }


def test_every_node_has_a_role_and_only_the_heads_may_start_others(started):
    roles = {name: node["IamInstanceProfile"]["Arn"].rsplit("/", 1)[1] for name, node in started.items()}
    assert roles == {"head": "raydd-head", "cpu": "raydd-worker", "gpu": "raydd-worker"}
    assert all(node["MetadataOptions"]["HttpTokens"] == "required" for node in started.values())
    iam = boto3.client("iam")
    assert iam.list_role_policies(RoleName="raydd-worker")["PolicyNames"] == []
    assert iam.list_role_policies(RoleName="raydd-head")["PolicyNames"] == ["start-workers"]


def test_ssh_is_open_to_one_address_and_nothing_else_to_anybody(account, started):
    ec2, _ = account
    (group,) = {group["GroupId"] for node in started.values() for group in node["SecurityGroups"]}
    (found,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    addresses = {(rule.get("FromPort"), span["CidrIp"]) for rule in found["IpPermissions"] for span in rule["IpRanges"]}
    assert addresses == {(22, "203.0.113.7/32")}
    inside = {pair["GroupId"] for rule in found["IpPermissions"] for pair in rule["UserIdGroupPairs"]}
    assert inside == {group}


def test_the_resources_are_those_of_the_instance_types(account):
    """The head excepted, which offers nothing of what it has."""
    ec2, config = account
    for name in ("cpu", "gpu"):
        kind = config["available_node_types"][name]
        wanted = kind["node_config"]["InstanceType"]
        (facts,) = ec2.describe_instance_types(InstanceTypes=[wanted])["InstanceTypes"]
        gpus = sum(gpu["Count"] for gpu in facts.get("GpuInfo", {}).get("Gpus", []))
        assert kind["resources"].get("CPU") == facts["VCpuInfo"]["DefaultVCpus"]
        assert kind["resources"].get("GPU", 0) == gpus
        assert "spot" in facts["SupportedUsageClasses"]


def test_roles_reach_one_bucket_only(account):
    iam = boto3.client("iam")
    for role in ("raydd-worker", "raydd-head"):
        (policy,) = iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"]
        document = iam.get_policy_version(PolicyArn=policy["PolicyArn"], VersionId="v1")["PolicyVersion"]["Document"]
        buckets = [
            statement["Resource"]
            for statement in document["Statement"]
            if any(action.startswith("s3:") for action in statement["Action"])
        ]
        assert buckets == ["arn:aws:s3:::images", "arn:aws:s3:::images/*"]


# What AWSNodeProvider calls when it starts, tags, lists and ends nodes, and what EC2 asks for in turn.
NEEDED = (
    "ec2:RunInstances",
    "ec2:TerminateInstances",
    "ec2:CreateTags",
    "ec2:DescribeInstances",
    "ec2:DescribeInstanceStatus",
    "iam:PassRole",
    "ssm:GetParameters",
)


def _allowed() -> dict[str, dict]:
    """The head's statements by action."""
    head = read("aws-stack.yaml")["Resources"]["Head"]["Properties"]
    statements = head["Policies"][0]["PolicyDocument"]["Statement"]
    actions = [(statement["Action"], statement) for statement in statements]
    return {name: st for some, st in actions for name in (some if isinstance(some, list) else [some])}


def test_the_head_may_do_what_starting_and_ending_workers_takes():
    allowed = _allowed()
    assert [need for need in NEEDED if not any(fnmatch.fnmatch(need, action) for action in allowed)] == []
    assert not allowed.keys() & {"*", "ec2:*", "iam:*", "s3:*", "ssm:*"}


def test_the_head_ends_only_our_machines_and_hands_on_only_the_workers_role():
    allowed = _allowed()
    ours = {"StringEquals": {"aws:ResourceTag/ray-cluster-name": read("aws.yaml")["cluster_name"]}}
    assert allowed["ec2:TerminateInstances"]["Condition"] == ours
    assert allowed["iam:PassRole"]["Resource"] == {"Fn::GetAtt": ["Worker", "Arn"]}


@pytest.mark.parametrize(
    ("address", "fits"), [("203.0.113.7/32", True), ("10.0.0.0/8", True), ("0.0.0.0/0", False), ("203.0.113.7", False)]
)
def test_ssh_cannot_be_opened_to_every_address(address, fits):
    pattern = read("aws-stack.yaml")["Parameters"]["SshFrom"]["AllowedPattern"]
    assert bool(re.fullmatch(pattern, address)) == fits
