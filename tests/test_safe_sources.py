"""No source file of raydd calls what can run code out of data: unpickling, evaluating, unpacking archives, shells.

The list is a grep over syntax trees, so that a mention in a docstring is none; the first tests plant each call.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "raydd"
SOURCES = sorted(ROOT.rglob("*.py"))
# Modules that raydd may not import at all.
MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "ctypes"}
MODULES |= {"subprocess", "zipfile", "pty", "runpy", "code"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
# Attributes by which archives are unpacked and pickles read, whatever they are called on.
ATTRIBUTES = {"extractall", "extract", "unpack_archive", "read_pickle", "to_pickle", "system", "popen", "allow_pickle"}
# Calls that are safe only with a certain argument.
NEEDED = {
    "torch.load": ("weights_only", True),
    "torch.hub.load_state_dict_from_url": ("weights_only", True),
    "from_pretrained": ("use_safetensors", True),
}
# Calls that stand behind a guard, and the one module that has it.
GUARDED = {
    "pq.ParquetFile": "store/plain.py",
    "pq.read_table": None,
    "pq.read_metadata": None,
    "pq.read_schema": None,
    "pa.set_memory_pool": None,
    "json.loads": "store/plain.py",
    "json.load": None,
    "torch.hub.load": None,
    "pq.ParquetDataset": None,
    "np.fromfile": None,
    "pa.ipc.open_stream": "runtime/ray_stream.py",  # what this job itself packed
}
# The one module that calls the C library, which this process has loaded anyway: no file is loaded by it.
OWN_MODULES = {"runtime/heap.py": {"ctypes"}}
# Where JSON is parsed that raydd has just made itself, or whose faults are handled on the spot.
OWN_JSON = {"train/snapshot.py"}


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute; `*.c` of one that hangs on another expression."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join(reversed([*parts, node.id if isinstance(node, ast.Name) else "*"]))


def imported(node: ast.AST) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name.split(".")[0] for alias in node.names}
    return {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()


def offenses(text: str, name: str) -> list[str]:
    """What a source file does that it may not, one line each."""
    found = []
    for node in ast.walk(ast.parse(text)):
        found += [f"imports {module}" for module in imported(node) & MODULES - OWN_MODULES.get(name, set())]
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        last = called.rsplit(".", 1)[-1]
        keywords = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
        if called.startswith("ctypes.") and ast.unparse(node) != "ctypes.CDLL(None)":
            found.append(f"calls {called}")
        if called in BUILTINS or (last in ATTRIBUTES and "." in called) or keywords.get("allow_pickle"):
            found.append(f"calls {called}")
        if called in ("np.load", "numpy.load") and keywords.get("allow_pickle", False) is not False:
            found.append(f"calls {called}")
        for safe, (word, value) in NEEDED.items():
            if (called == safe or last == safe) and keywords.get(word) is not value:
                found.append(f"calls {called} without {word}={value}")
        if called in GUARDED and GUARDED[called] != name and not (called == "json.loads" and name in OWN_JSON):
            found.append(f"calls {called} unguarded")
    return found


PLANTED = [
    "import pickle",
    "from pickle import loads",
    "import cloudpickle as c",
    "import yaml",
    "from subprocess import run",
    "import ctypes",
    "def f():\n    import dill",
    "eval('1')",
    "exec(text)",
    "compile(a, b, c)",
    "torch.load(path)",
    "torch.load(path, weights_only=False)",
    "torch.hub.load_state_dict_from_url(url)",
    "torch.hub.load('repo', 'x')",
    "np.load(path, allow_pickle=True)",
    "numpy.load(path, allow_pickle=switch)",
    "archive.extractall(path)",
    "shutil.unpack_archive(path)",
    "tarfile.open(path).extract(member)",
    "pd.read_pickle(path)",
    "os.system('x')",
    "UNet.from_pretrained(path)",
    "getattr(diffusers, kind).from_pretrained(path, use_safetensors=False)",
    "pq.ParquetFile(path)",
    "pq.read_table(path)",
    "json.loads(data)",
]
FINE = [
    "'''eval(x), pickle'''",
    "model.eval()",
    "re.compile(x)",
    "torch.load(f, weights_only=True)",
    "Net.from_pretrained(path, use_safetensors=True)",
    "np.load(path)",
    "np.load(path, allow_pickle=False)",
    "json.dumps(x)",
    "load_tensors(data, uri)",
]


@pytest.mark.parametrize("text", PLANTED)
def test_a_planted_call_is_found(text):
    assert offenses(text, "x.py")


@pytest.mark.parametrize("text", ["import pickle", "ctypes.CDLL(path)", "ctypes.PyDLL(None)", "ctypes.cast(a, b)"])
def test_the_module_that_calls_the_c_library_loads_nothing(text):
    assert offenses(text, "runtime/heap.py")
    assert not offenses("import ctypes; ctypes.CDLL(None)", "runtime/heap.py")


@pytest.mark.parametrize("text", FINE)
def test_what_is_fine_passes(text):
    assert not offenses(text, "x.py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_runs_nothing_out_of_data(path):
    assert not offenses(path.read_text(), path.relative_to(ROOT).as_posix())
