"""The design's rules about modules, measured from the sources: who may import whom, and what every module brings."""

import ast
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = (
    {"errors", "keyed", "config", "store"},
    {"models", "augment", "data"},
    {"score", "train"},
    {"distill"},
    {"evaluate", "report"},
    {"runtime"},
    {"pipelines"},
    {"cli", "commands"},
)
SOURCES = sorted((ROOT / "raydd").rglob("*.py"))
MODULES = [path for path in SOURCES if path.name != "__init__.py"]
# Modules without a test of their name, and where they are tested instead.
ELSEWHERE = {
    "commands/distill.py": "tests/test_cli.py runs every command",
    "commands/make.py": "tests/test_cli.py runs every command",
    "commands/judge.py": "tests/test_cli.py runs every command",
    "distill/output.py": "options only; tests of every method go through them",
    "pipelines/method.py": "protocols; the tests of every method in tests/pipelines go through them",
    "pipelines/show.py": "tests/runtime/test_jobs.py runs a job that ends with it",
    "pipelines/demo.py": "the README's commands are run as tests; its parts are tested in tests/pipelines",
    "pipelines/plan/bench.py": "tests/pipelines/plan/test_plan_probes.py runs probes on it",
    "pipelines/plan/probes_match.py": "tests/pipelines/plan/test_plan_probes.py runs every probe",
    "models/classic.py": "tests/models/test_registry.py builds every network",
    "models/resnet.py": "tests/models/test_registry.py builds every network",
    "models/vit.py": "tests/models/test_registry.py builds every network",
    "store/local_disk.py": "tests/store/test_filesystem.py writes and lists through it",
    "store/reach.py": "tests/store/test_filesystem.py reaches through it",
    "runtime/execute.py": "tests/runtime/test_local.py and test_ray_units.py go through it",
    "runtime/cluster.py": "every test marked `ray` connects through it",
    "runtime/storage.py": "tests/runtime/test_ray_units.py stores through it",
    "report/style.py": "colors and CSS; tests/report/test_page.py reads the page",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT / "raydd").as_posix()


def part_of(path: Path) -> str:
    """The folder, or the module at the top, that a source file belongs to."""
    return path.relative_to(ROOT / "raydd").parts[0].removesuffix(".py")


def level_of(part: str) -> int:
    return next(level for level, parts in enumerate(LAYERS) if part in parts)


def imports_of(path: Path) -> set[str]:
    """Dotted names of everything a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def raydd_imports(path: Path) -> set[tuple[str, ...]]:
    """The parts behind `raydd.` of the modules of ours that a file imports."""
    return {tuple(name.split(".")[1:]) for name in imports_of(path) if name.split(".")[0] == "raydd"}


def ray_users() -> set[str]:
    """Source files that import Ray."""
    return {name_of(path) for path in SOURCES if "ray" in {name.split(".")[0] for name in imports_of(path)}}


def test_the_layers_name_every_part_of_the_package():
    parts = {part_of(path) for path in SOURCES} - {"__init__"}
    assert parts == set().union(*LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_its_layer_or_below(path):
    own = level_of(part_of(path))
    # `import raydd` itself (for its version) has no part; `__version__` lies below everything.
    ours = {parts for parts in raydd_imports(path) if parts and parts[0] != "__version__"}
    assert not {".".join(parts) for parts in ours if level_of(parts[0]) > own}


def test_ray_is_imported_by_the_runtime_only():
    users = ray_users()
    assert users and all(name.startswith("runtime/") for name in users), users


def test_ray_is_not_loaded_before_it_is_used():
    """The modules that choose an executor must not import those that import ray at their top."""
    users = ray_users()
    modules = {("runtime", Path(name).stem) for name in users}
    for path in MODULES:
        if name_of(path) in users:
            continue
        body = ast.parse(path.read_text()).body
        top = {f"{n.module}.{a.name}" for n in body if isinstance(n, ast.ImportFrom) for a in n.names}
        loaded = {tuple(name.split(".")[1:3]) for name in top if name.startswith("raydd.runtime")}
        assert not loaded & modules, path


def test_methods_do_not_import_each_other():
    methods = {"controls", "infoutil", "dsco", "ld3m"}
    for path in (ROOT / "raydd" / "distill").rglob("*.py"):
        own = path.relative_to(ROOT / "raydd" / "distill").parts[0].removesuffix(".py")
        used = {parts[1] for parts in raydd_imports(path) if parts[0] == "distill" and len(parts) > 1}
        assert own not in methods or not (used & methods) - {own}, path
        assert own in methods or not used & methods, f"{path}: what methods share may not know them"


@pytest.mark.parametrize("path", [path for path in SOURCES if path.read_text().strip()], ids=name_of)
def test_a_module_explains_itself(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


def test_every_module_has_a_test_of_its_name():
    """`raydd/a/b.py` is tested in `tests/a/test_b.py`; `test_a_b.py` where another folder has a `test_b.py`."""
    missing = []
    for path in MODULES:
        name = Path(name_of(path))
        folder = ROOT / "tests" / name.parent
        stem = name.stem.lstrip("_")
        names = (f"test_{stem}.py", f"test_{name.parent.name}_{stem}.py")
        if name_of(path) not in ELSEWHERE and not any((folder / test).exists() for test in names):
            missing.append(name.as_posix())
    assert not missing
    assert ELSEWHERE.keys() <= {name_of(path) for path in MODULES}


def test_no_two_tests_share_a_name():
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name, count in names.items() if count > 1]
