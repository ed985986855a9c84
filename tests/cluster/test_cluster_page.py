"""cluster/README.md: every command that can be checked without a cloud is; what it names exists.

Ray's options are looked up in Ray's own command line, raydd's in the scripts' help. Commands that only write files run.
"""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys

import pytest
import yaml
from cluster_files import FOLDER, PINS, PROJECT, ROOT, prepared, ray_pin, read
from kuberay_rules import check
from kuberay_rules import complaints as wrong_on_kubernetes
from launcher_rules import complaints, workers
from packaging.requirements import Requirement

PAGE = (FOLDER / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
SETTINGS = {
    "REGISTRY": "1234.registry.example",
    "PROJECT": "some-project",
    "BUCKET": "some-bucket",
    "STORE": "s3://some-bucket",
}


def commands(start: str) -> list[str]:
    """Commands of the page, one line each, that begin with a word."""
    lines = "\n".join(BLOCKS).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(f"{start} ")]


def words(line: str) -> list[str]:
    return shlex.split(line, comments=True)


def run(script: str, home, **settings) -> str:
    """What a shell prints, with nothing of this machine's settings."""
    environment = {"PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}", "HOME": str(home)} | settings
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        cwd=home,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0][:40])
def test_every_block_is_a_shell_script(block):
    assert subprocess.run(["bash", "-n", "-c", block], capture_output=True).returncode == 0


RAY = sorted({line for line in commands("ray")} | set(re.findall(r"`(ray (?:job|exec|monitor|up|down)[^`]*)`", PAGE)))


def wrong_ray(line: str) -> str | None:
    """What Ray's command line has not got; None if it has all of it."""
    cli = pytest.importorskip("ray.scripts.scripts").cli
    rest = words(line)[1:]
    while rest and hasattr(cli, "commands"):
        if rest[0] not in cli.commands:
            return rest[0]
        cli = cli.commands[rest.pop(0)]
    known = {name for parameter in cli.params for name in (*parameter.opts, *parameter.secondary_opts)}
    ours = rest[: rest.index("--")] if "--" in rest else rest
    return next((word for word in ours if word.startswith("-") and word.split("=")[0] not in known), None)


@pytest.mark.parametrize("line", RAY)
def test_rays_commands_and_options_exist(line):
    assert wrong_ray(line) is None


@pytest.mark.parametrize(
    "line", ["ray upp x.yaml", "ray up --yess x.yaml", "ray job submitt", "ray job submit --workdir . -- python x.py"]
)
def test_a_command_that_ray_has_not_is_seen(line):
    assert wrong_ray(line)


def job_options() -> set[str]:
    """Options of jobs/dsco_in1k.py on the page and in the RayJob."""
    (submitted,) = (line for line in commands("ray") if "job submit" in line)
    given = words(submitted)
    given = given[given.index("--") + 1 :]
    inside = shlex.split(read("kuberay-rayjob.yaml")["spec"]["entrypoint"])
    assert given[:2] == ["python", "jobs/dsco_in1k.py"]
    assert inside[:2] == ["python", "/home/ray/raydd/jobs/dsco_in1k.py"]
    assert [word for word in given if word[:2] == "--"] == [word for word in inside if word[:2] == "--"]
    return {word for word in given if word.startswith("--")}


def test_the_job_has_these_options(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dsco_in1k.py", "--help"])
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "jobs" / "dsco_in1k.py"))
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    assert job_options() <= known
    assert "--out" in known and "--outt" not in known


def test_named_files_exist():
    names = re.findall(r"(?:cluster|jobs)/[\w-]+\.(?:py|yaml|md|txt)|cluster/Dockerfile", PAGE)
    assert {"cluster/aws.yaml", "cluster/gcp.yaml", "cluster/aws-stack.yaml", "jobs/dsco_in1k.py"} <= set(names)
    assert [name for name in names if not (ROOT / name).exists()] == []
    table = re.findall(r"`([\w.-]+)`", PAGE.split("| file |")[1].split("\n\n")[0])
    assert {name for name in table if "." in name or name == "Dockerfile"} | {"README.md"} == {
        path.name for path in FOLDER.iterdir()
    }


def test_versions_are_those_of_the_image():
    pins = {pin.name: pin for pin in map(Requirement, PINS)}
    named = [Requirement(text) for text in re.findall(r'"([\w-]+(?:\[\w+\])?==[\d.]+)"', PAGE)]
    assert {"ray", "boto3", "torch", "diffusers"} <= {need.name for need in named}
    assert [str(need) for need in named if need.specifier != pins[need.name].specifier] == []
    python = re.search(r"-py3(\d+)-", (FOLDER / "Dockerfile").read_text())[1]
    assert f"Python 3.{python}" in PAGE and f">=3.{python}" in PROJECT["requires-python"]


def test_the_token_is_written_for_one_pair_of_eyes(tmp_path):
    (block,) = (block for block in BLOCKS if "token_hex" in block)
    run(block.split("\n", 1)[1], tmp_path)
    token = tmp_path / ".raydd-token" / "auth_token"
    assert re.fullmatch(r"[0-9a-f]{64}\n", token.read_text())
    assert token.parent.stat().st_mode & 0o077 == 0
    for name in ("aws.yaml", "gcp.yaml"):
        assert read(name)["file_mounts"] == {f"~/{token.parent.name}": f"~/{token.parent.name}"}


def test_the_class_map_is_read_by_raydd(tmp_path):
    from raydd.pipelines.request import read_class_map

    for name in ("n01443537", "n01440764", "n01484850"):
        (tmp_path / "imagenet" / "train" / name).mkdir(parents=True)
    (block,) = (block for block in BLOCKS if "rows.json" in block and "import json" in block)
    run(block[block.index('python -c "\nimport json') :], tmp_path)
    assert json.loads((tmp_path / "rows.json").read_text()) == {"n01440764": 0, "n01443537": 1, "n01484850": 2}
    assert dict(read_class_map(str(tmp_path / "rows.json"))) == {"n01440764": 0, "n01443537": 1, "n01484850": 2}


def filled(line: str, tmp_path) -> str:
    """What a `sed` command of the page makes of its file."""
    script = line.split(">")[0].split("|")[0].replace("cluster/", f"{FOLDER}/")
    return run(script, tmp_path, **SETTINGS)


@pytest.mark.parametrize("line", commands("sed"))
def test_filling_in_leaves_no_blank(line, tmp_path):
    text = filled(line, tmp_path)
    assert not re.search(r"\b(?:REGISTRY|PROJECT|BUCKET)\b", text)
    config = yaml.safe_load(text)
    if "kind" in config:
        check(config)
        assert wrong_on_kubernetes(config) == []
    else:
        assert complaints(prepared(config)) == []


def test_every_file_is_filled_in_somewhere():
    files = {name for line in commands("sed") for name in re.findall(r"cluster/([\w-]+\.yaml)", line)}
    assert files == {path.name for path in FOLDER.glob("*.yaml")} - {"aws-stack.yaml"}


def test_the_stack_gets_its_parameters():
    (line,) = (line for line in commands("aws") if "cloudformation deploy" in line)
    given = {word.split("=")[0] for word in words(line)[words(line).index("--parameter-overrides") + 1 :]}
    assert given == read("aws-stack.yaml")["Parameters"].keys()


def test_a_variable_is_set_before_it_is_used():
    known = {"HOME"}
    for line in "\n".join(BLOCKS).replace("\\\n", " ").splitlines():
        used = set(re.findall(r"\$\{?([A-Z]\w*)", line))
        own = set(re.findall(r"\b([A-Z][A-Z_]*)=", line)) | set(re.findall(r"^for (\w+) in", line))
        assert used <= known | own, line
        known |= own


def test_what_it_says_about_size_and_price_is_in_the_files():
    for name in ("aws.yaml", "gcp.yaml"):
        config = prepared(read(name))
        for kind, settings in workers(config).items():
            node = settings["node_config"]
            machine = node.get("InstanceType") or node["machineType"]
            assert re.search(rf"{re.escape(machine)}\b.*at most {settings['max_workers']} \|", PAGE), (kind, machine)
        head = config["available_node_types"]["head"]["node_config"]
        assert f"{head.get('InstanceType') or head['machineType']}" in PAGE
        assert config["idle_timeout_minutes"] == 5 and "five idle minutes" in PAGE
    assert not re.search(r"[$€£] ?\d|\d ?(?:USD|EUR|dollars)", PAGE), "prices change: only formulas"


def test_the_pools_of_nodes_are_those_of_the_groups():
    spec = read("kuberay-raycluster.yaml")["spec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    for line in commands("gcloud"):
        if "node-pools create" not in line:
            continue
        given = words(line)
        name = given[given.index("create") + 1]
        selector = groups[name]["template"]["spec"]["nodeSelector"]["raydd-pool"]
        assert f"raydd-pool={selector}" in given and given[given.index("--min-nodes") + 1] == "0"
        assert int(given[given.index("--max-nodes") + 1]) == groups[name]["maxReplicas"]
        assert ("--spot" in given) == (selector == "gpu-spot")
    assert f'rayVersion: "{ray_pin()}"' in (FOLDER / "kuberay-rayjob.yaml").read_text()
