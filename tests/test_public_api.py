"""The application is a program for any PopXL: it uses nothing that the API lists do not have."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.popxl_uses import ApiIndex, look_through, unknown_uses

ROOT = Path(__file__).parents[1]
LISTS = ROOT / "runtime" / "tests" / "api"
FOLDERS = ("config", "modelling", "execution", "utils")
PROGRAMS = ("run_inference.py", "inference.py", "evaluate.py")
FRONT_END = ("popxl", "popxl_addons", "popart", "popdist")
# What the front end may import only inside functions: the door to the engine.
TORCH = ("torch", "torchvision", "transformers")


def application_files() -> list[Path]:
    """Every Python file of the application."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [*files, *(ROOT / name for name in PROGRAMS)]


def outside_runtime() -> list[Path]:
    """Every Python file of the project but those of runtime/ and of environments."""
    own = (path for path in ROOT.rglob("*.py") if not path.is_relative_to(ROOT / "runtime"))
    return [path for path in own if not {".venv", "build", "cache"} & set(path.parts)]


def front_end_files() -> list[Path]:
    """Every Python file of popxl, popxl_addons, popart and popdist."""
    return [p for name in FRONT_END for p in sorted((ROOT / "runtime/src" / name).rglob("*.py"))]


def imported_at(tree: ast.AST, at_import_only: bool) -> set[str]:
    """Top-level packages that a file imports, anywhere or only when it is itself imported."""
    found: set[str] = set()
    pending = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {item.name.split(".")[0] for item in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").split(".")[0])
        elif at_import_only and _runs_later(node):
            continue
        pending += ast.iter_child_nodes(node)
    return found


def _runs_later(node: ast.AST) -> bool:
    typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or typing_only


@pytest.fixture(scope="module")
def api() -> ApiIndex:
    return ApiIndex(LISTS / "popxl-api.json", LISTS / "popxl-addons-api.json")


@pytest.mark.parametrize("path", application_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_application_uses_only_listed_names(path: Path, api: ApiIndex):
    assert unknown_uses(path.read_text(), api) == []


def test_the_check_follows_the_application(api: ApiIndex):
    """A finder that follows nothing would pass every file."""
    followed = [
        name for p in application_files() for name in look_through(p.read_text(), api).followed
    ]
    assert len(followed) >= 150
    assert {"popxl.ops.softmax", "popxl.Tensor.shape", "popxl.Ir._pb_ir"} <= set(followed)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("ops.softmax(scores, axis=-1)", "ops.softmax(scores, dim=-1)"),
        ("visible.shape[2:]", "visible.size[2:]"),
        ("popxl.constant(d", "popxl.constants(d"),
        ("bias=False", "biased=False"),
    ],
)
def test_the_check_finds_a_fault_put_into_the_application(right: str, wrong: str, api: ApiIndex):
    source = (ROOT / "modelling" / "gptj" / "attention.py").read_text()
    assert right in source
    assert len(unknown_uses(source.replace(right, wrong, 1), api)) == 1


@pytest.mark.parametrize(
    ("snippet", "message"),
    [
        ("import popxl\npopxl.flaot16", "popxl has no flaot16"),
        ("import popxl\npopxl.Ir(replicas=4)", "popxl.Ir has no parameter replicas"),
        ("from popxl import operators", "popxl has no operators"),
        ("import popxl.opps", "no module popxl.opps"),
        ("from popxl import ops\nops.matmul(1, 2, partial=3)", "has no parameter partial"),
        ("import popxl.ops as ops\nops.matmull(1, 2)", "popxl.ops has no matmull"),
        ("from popxl import ops\nops.relu(1, 2)", "popxl.ops.relu takes 1 positional"),
        ("import popxl\nir = popxl.Ir()\nir.maingraph", "popxl.Ir has no maingraph"),
        ("import popxl\nir = popxl.Ir()\nir._pb_ir.optimise()", "has no optimise"),
        (
            "import popxl\nir = popxl.Ir()\nir._pb_ir.getSessionOptions().fastMode = 1",
            "SessionOptions has no fastMode",
        ),
        ("import popxl\nir = popxl.Ir()\nir.create_graph(0, nome='x')", None),
        (
            "import popxl\ndef f(x: popxl.Tensor):\n    return x.reshaped((1,))",
            "popxl.Tensor has no reshaped",
        ),
        (
            "import popxl\ndef f(x: popxl.Tensor):\n    y = x + 1\n    return y.size",
            "popxl.Tensor has no size",
        ),
        ("import popxl_addons as addons\naddons.Modul", "popxl_addons has no Modul"),
        ("from popxl_addons import List", "popxl_addons has no List"),
        ("from popxl_addons.layers import Linear\nLinear(4, biass=True)", "no parameter biass"),
        (
            "import popxl_addons as addons\n"
            "class M(addons.Module):\n"
            "    def build(self, x):\n"
            "        return self.add_input('w', x)",
            "nor does the class define it",
        ),
        (
            "from popxl_addons.layers import Linear\n"
            "import popxl_addons as addons\n"
            "class M(addons.Module):\n"
            "    def __init__(self):\n"
            "        self.linear = Linear(4)\n"
            "    def build(self, x):\n"
            "        return self.linear.features",
            "Linear has no features",
        ),
        ("import popart\npopart.version()", "popart has no version"),
        ("import popdist\npopdist.rank()", "popdist has no rank"),
        (
            "import popxl\nwith popxl.Session(1, 'ipu_hw') as s:\n    pass\n"
            "t = popxl.Session(1)\n[t.runs(i) for i in range(3)]",
            "popxl.Session has no runs",
        ),
    ],
)
def test_the_check_finds_what_the_lists_lack(snippet: str, message: str | None, api: ApiIndex):
    problems = unknown_uses(snippet, api)
    if message is None:  # keyword arguments of a graph go to the user's function
        assert problems == []
    else:
        assert len(problems) == 1
        assert message in problems[0]


def test_the_check_accepts_right_uses(api: ApiIndex):
    snippet = """
import numpy as np
import popart
import popxl
import popxl_addons as addons
from popxl import ops
from popxl_addons import NamedTensors
from popxl_addons.layers import Linear, LayerNorm
from popxl_addons.named_tensors import NamedTensorData

class Block(addons.Module):
    def __init__(self, size: int):
        super().__init__()
        self.size = size
        self.linear = Linear(size, bias=False)

    def build(self, x: popxl.Tensor) -> popxl.Tensor:
        w = self.add_variable_input("w", lambda: np.zeros(self.size), popxl.float16)
        y = ops.reshape(self.linear(x), (1, self.size)) @ w
        return (x + y).reshape(x.shape).transpose()

def build(tp: int) -> NamedTensors:
    ir = popxl.Ir(replication=tp)
    ir.num_host_transfers = 1
    ir._pb_ir.getSessionOptions().engineOptions["a.b"] = "c"
    group = ir.replica_grouping(stride=tp, group_size=1)
    with ir.main_graph, popxl.in_sequence():
        stream = popxl.h2d_stream((1,), popxl.float32, name="x")
        loaded = ops.host_load(stream)
        total = ops.collectives.replicated_all_reduce(loaded, group=group.transpose())
        print(total.dtype.as_numpy(), popart.versionString())
    return NamedTensors(anything=1).whatever.it.holds
"""
    assert unknown_uses(snippet, api) == []


def importers(files: list[Path], packages: tuple[str, ...], at_import_only: bool) -> list[str]:
    """Files that import one of the packages."""
    trees = ((path, ast.parse(path.read_text())) for path in files)
    found = (path for path, tree in trees if imported_at(tree, at_import_only) & set(packages))
    return [str(path.relative_to(ROOT)) for path in found]


def test_only_the_runtime_imports_popxl_torch():
    assert importers(outside_runtime(), ("popxl_torch",), at_import_only=False) == []


def test_the_front_end_imports_no_torch():
    assert len(front_end_files()) > 100
    assert importers(front_end_files(), TORCH, at_import_only=True) == []


def test_import_checks_find_imports():
    later = ast.parse("def f():\n    import torch\nimport numpy.linalg")
    assert imported_at(later, at_import_only=True) == {"numpy"}
    assert imported_at(later, at_import_only=False) == {"numpy", "torch"}
    assert imported_at(ast.parse("class A:\n    from torch import nn"), True) == {"torch"}
    assert imported_at(ast.parse("try:\n    import torch\nexcept E:\n    pass"), True) == {"torch"}
