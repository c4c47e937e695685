"""Imports point one way, and the front end works without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FRONT_END = ("popxl", "popxl_addons", "popart", "popdist")

# What a package of ours must not import when it is imported itself. The longest name that fits a
# module holds for it.
FORBIDDEN = {
    "popxl": (
        "torch",
        "popxl_addons",
        *(
            f"popxl_torch.{part}"
            for part in ("executor", "backends", "kernels", "passes", "plan", "compile")
        ),
    ),
    # popxl_torch.ir: an op of addons declares its kind as popxl's ops do.
    "popxl_addons": (
        "torch",
        *(
            f"popxl_torch.{part}"
            for part in ("executor", "backends", "kernels", "passes", "plan", "compile")
        ),
    ),
    "popart": ("torch", "popxl_addons"),
    "popdist": ("torch", "popxl_addons"),
    "cppimport": ("torch", *(f"popxl_torch.{part}" for part in ("executor", "kernels"))),
    "popxl_torch": ("torch", *FRONT_END),
    "popxl_torch.ir": (
        "torch",
        *FRONT_END,
        *(
            f"popxl_torch.{part}"
            for part in ("executor", "backends", "kernels", "passes", "plan", "compile")
        ),
    ),
    "popxl_torch.passes": (
        "torch",
        *FRONT_END,
        *(f"popxl_torch.{part}" for part in ("executor", "backends", "kernels", "compile")),
    ),
    "popxl_torch.plan": (
        "torch",
        *FRONT_END,
        *(f"popxl_torch.{part}" for part in ("executor", "backends", "kernels", "compile")),
    ),
    "popxl_torch.executor": FRONT_END,
    "popxl_torch.backends": (*FRONT_END, "popxl_torch.executor"),
    "popxl_torch.kernels": (*FRONT_END, "popxl_torch.executor", "popxl_torch.backends"),
}
NO_TORCH = dict.fromkeys(FRONT_END, ("torch",))
# Where a function body may import torch: data types convert to and from torch's on request.
MAY_IMPORT_TORCH_LATE = {"popxl/dtypes.py"}


def module_name(path: Path, root: Path) -> str:
    """`popxl.ops.add` for popxl/ops/add.py under `root`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool, late: bool) -> Iterator[tuple[int, str]]:
    """(line, module) of the imports in a source; with `late` those in function bodies as well."""
    pending: list[ast.AST] = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not late:
            continue
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, module, is_package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        pending += ast.iter_child_nodes(node)


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parts = parts[: len(parts) - node.level + is_package]
    return ".".join([*parts, *([node.module] if node.module else [])])


def within(name: str, package: str) -> bool:
    """Whether a dotted name is a package or lies in it."""
    return name == package or name.startswith(package + ".")


def violations(root: Path, rules: dict[str, tuple[str, ...]], late: bool) -> list[str]:
    """One line for every import under `root` that breaks the rules."""
    found = []
    for path in sorted(root.rglob("*.py")):
        module = module_name(path, root)
        owners = [package for package in rules if within(module, package)]
        if not owners:
            continue
        owner = max(owners, key=len)
        is_package = path.name == "__init__.py"
        for line, name in imported(path.read_text(), module, is_package, late):
            if any(within(name, barred) for barred in rules[owner]):
                found.append(f"{path.relative_to(root)}:{line} imports {name}")
    return found


def test_imports_point_down():
    assert violations(SRC, FORBIDDEN, late=False) == []


def test_function_bodies_of_the_front_end_import_torch_only_where_listed():
    found = violations(SRC, NO_TORCH, late=True)
    assert {line.split(":")[0] for line in found} == MAY_IMPORT_TORCH_LATE


def test_every_package_has_a_rule():
    packages = {path.name for path in SRC.iterdir() if (path / "__init__.py").exists()}
    assert packages <= set(FORBIDDEN)


@pytest.mark.parametrize(
    ("module", "source", "late", "expected"),
    [
        ("popxl/ops/add.py", "import torch", False, 1),
        ("popxl/ops/add.py", "from torch.nn import functional", False, 1),
        ("popxl/ops/add.py", "import torchless", False, 0),
        ("popxl/ops/add.py", "def f():\n    import torch", False, 0),
        ("popxl/ops/add.py", "def f():\n    import torch", True, 1),
        ("popxl/ops/__init__.py", "from ... import torch", False, 0),
        ("popxl/add.py", "try:\n    import torch\nexcept ImportError:\n    pass", False, 1),
        ("popxl_torch/ir/text.py", "from popxl_torch import executor", False, 1),
        ("popxl_torch/ir/text.py", "from ..executor import run", False, 1),
        ("popxl_torch/ir/__init__.py", "from ..executor import run", False, 1),
        ("popxl_torch/ir/text.py", "from . import records", False, 0),
        ("popxl_torch/kernels/nn.py", "import torch", False, 0),
        ("popxl/a.py", "if TYPE_CHECKING:\n    import torch", False, 0),
    ],
)
def test_the_check_finds_what_it_should(tmp_path, module, source, late, expected):
    path = tmp_path / module
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert len(violations(tmp_path, FORBIDDEN, late)) == expected


def modules_after(code: str) -> set[str]:
    """Names of the top packages that a fresh interpreter has loaded after some code."""
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_front_end_leaves_torch_out():
    loaded = modules_after(f"import {', '.join(FRONT_END)}")
    assert set(FRONT_END) <= loaded
    assert "torch" not in loaded


def test_torch_would_be_seen_if_it_were_imported():
    assert "torch" in modules_after("import torch")
