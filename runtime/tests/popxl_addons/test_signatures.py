"""Every public name has the signature that programs know."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import popxl
import popxl_addons
import pytest

API = json.loads((Path(__file__).parents[1] / "api" / "popxl-addons-api.json").read_text())

CALLABLES = sorted(name for name, symbol in API["symbols"].items() if "params" in symbol)

CLASSES = [name for name, symbol in API["symbols"].items() if symbol["kind"] == "class"]


def find(name: str) -> Any:
    """The object of a dotted name, as it is in its class."""
    symbol = API["symbols"][name]
    found: Any = importlib.import_module(symbol["module"])
    for part in name.removeprefix(symbol["module"] + ".").partition(":")[0].split("."):
        found = inspect.getattr_static(found, part)
    return found


def expected_parameters(symbol: dict[str, Any]) -> list[tuple[str, str, Any]]:
    names = {"popxl": popxl, **vars(popxl)}
    return [
        (
            p["name"],
            p["kind"],
            eval(p["default"], names) if p["has_default"] else inspect.Parameter.empty,
        )
        for p in symbol["params"]
    ]


def parameters(function: Any) -> list[tuple[str, str, Any]]:
    return [
        (p.name, p.kind.name.lower(), p.default)
        for p in inspect.signature(function).parameters.values()
    ]


@pytest.mark.parametrize("name", CALLABLES)
def test_signature(name: str):
    symbol = API["symbols"][name]
    found = find(name)
    if symbol["kind"].startswith("property"):
        assert isinstance(found, property)
        found = found.fset if symbol["kind"] == "property_setter" else found.fget
    if symbol["kind"] in ("classmethod", "staticmethod"):
        assert isinstance(
            found, {"classmethod": classmethod, "staticmethod": staticmethod}[symbol["kind"]]
        )
        found = found.__func__
    assert parameters(found) == expected_parameters(symbol)


@pytest.mark.parametrize("name", [n for n, s in API["symbols"].items() if s["kind"] == "class"])
def test_class(name: str):
    assert inspect.isclass(find(name))


@pytest.mark.parametrize("module", API["modules"])
def test_module_can_be_imported(module: str):
    found = importlib.import_module(module)
    assert hasattr(found, "__path__") == API["modules"][module]["is_package"]


@pytest.mark.parametrize("package", API["exports"])
def test_exports(package: str):
    found = importlib.import_module(package)
    # Names of other libraries and compiled bindings leak upstream; they are nobody's interface.
    ours = {
        name: source
        for name, source in API["exports"][package].items()
        if "popxl_addons." in source and not source.endswith(("_binding", "_impl"))
    }
    assert ours
    # Some submodules appear once something has imported them.
    for source in ours.values():
        if source.startswith("module:"):
            importlib.import_module(source.removeprefix("module:"))
    missing = [name for name in ours if not hasattr(found, name)]
    assert missing == []
    modules = {n for n, s in ours.items() if s.startswith("module:")}
    assert modules <= {name for name in ours if inspect.ismodule(getattr(found, name))}


@pytest.mark.parametrize(
    "path",
    [
        "popxl_addons.transforms.autodiff",
        "popxl_addons.seed_variable",
        "popxl_addons.ops.cross_entropy",
        "popxl_addons.ops.fp8_amax_scale",
        "popxl_addons.ops.rotary_pos_embed.rotary_pos_embed",
        "popxl_addons.ops.linear_layout.linear_layout",
    ],
)
def test_functions_hide_submodules_of_their_name(path: str):
    module, _, name = path.rpartition(".")
    assert inspect.isfunction(getattr(importlib.import_module(module), name))
    assert inspect.ismodule(importlib.import_module(path))


def test_bare_import_loads_what_programs_expect_and_nothing_heavy():
    code = (
        "import sys, json, popxl_addons;"
        "print(json.dumps([m for m in sys.modules if not m.startswith('_')]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(out.stdout))
    assert set(API["loaded_by_bare_import"]) <= loaded
    assert not {"torch", "scipy", "mpi4py", "cppimport", "git", "wandb"} & loaded


def test_git_commit_is_short_or_none(tmp_path, monkeypatch):
    from popxl_addons._git import git_commit

    assert popxl_addons.GIT_COMMIT is None or len(popxl_addons.GIT_COMMIT) == 7
    monkeypatch.chdir(tmp_path)
    git_commit.cache_clear()
    assert popxl_addons.GIT_COMMIT is None
    git_commit.cache_clear()
    with pytest.raises(AttributeError, match="no attribute 'GIT'"):
        _ = popxl_addons.GIT
