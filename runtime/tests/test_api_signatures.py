"""Every public name of popxl is there, with the signature that programs know."""

from __future__ import annotations

import builtins
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import popxl
import pytest

API = json.loads((Path(__file__).parent / "api" / "popxl-api.json").read_text())
SYMBOLS: dict[str, dict[str, Any]] = API["symbols"]
OF_KIND = {
    kind: [name for name, symbol in SYMBOLS.items() if symbol["kind"] == kind]
    for kind in sorted({symbol["kind"] for symbol in SYMBOLS.values()})
}
FUNCTIONS = ("function", "method", "classmethod", "staticmethod")
# Listed as a method by the list's way of reading a property with a setter.
PROPERTIES = {"popxl.context.Context.in_sequence"}
WITH_PARAMETERS = [
    name for kind in FUNCTIONS for name in OF_KIND.get(kind, []) if name not in PROPERTIES
]
# Says how the SDK's modules were loaded; nothing here imports torch.
INTERNAL = {"torch_imported"}


def find(name: str) -> Any:
    """The object of a listed name; methods and properties as they lie in their class."""
    owner, _, last = name.rpartition(".")
    if SYMBOLS.get(owner, {}).get("kind") == "class":
        return inspect.getattr_static(find(owner), last)
    return getattr(importlib.import_module(SYMBOLS[name]["module"]), last)


def expected_parameters(symbol: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(name, kind, default) as listed; defaults are evaluated in the module of the symbol."""
    names = {**vars(builtins), **vars(importlib.import_module(symbol["module"]))}
    return [
        (
            p["name"],
            p["kind"],
            eval(p["default"], names) if p["has_default"] else inspect.Parameter.empty,
        )
        for p in symbol["params"]
    ]


def parameters(found: Any, kind: str) -> list[tuple[str, str, Any]]:
    """(name, kind, default) of a function, or of a method without self or cls."""
    function: Callable[..., Any] = getattr(found, "__func__", found)
    listed = list(inspect.signature(function).parameters.values())
    if kind in ("method", "classmethod"):
        listed = listed[1:]
    return [(p.name, p.kind.name.lower(), p.default) for p in listed]


@pytest.mark.parametrize("name", WITH_PARAMETERS)
def test_signature(name: str):
    symbol = SYMBOLS[name]
    found = find(name)
    if symbol["kind"] in ("classmethod", "staticmethod"):
        assert type(found).__name__ == symbol["kind"]
    assert parameters(found, symbol["kind"]) == expected_parameters(symbol)


@pytest.mark.parametrize("name", OF_KIND["class"])
def test_class(name: str):
    assert inspect.isclass(find(name))


@pytest.mark.parametrize("name", [*OF_KIND["property"], *PROPERTIES])
def test_property(name: str):
    found = find(name)
    assert isinstance(found, property)
    assert (found.fset is not None) == (SYMBOLS[name].get("settable", False) or name in PROPERTIES)


@pytest.mark.parametrize("name", OF_KIND["constant"])
def test_constant(name: str):
    find(name)


@pytest.mark.parametrize("name", OF_KIND["enum"])
def test_enum(name: str):
    found = find(name)
    assert issubclass(found, Enum)
    assert list(found.__members__) == SYMBOLS[name]["enum_members"]


@pytest.mark.parametrize("name", OF_KIND["alias"])
def test_alias(name: str):
    assert find(name) is find(SYMBOLS[name]["target"])


@pytest.mark.parametrize("name", OF_KIND["dtype"])
def test_dtype(name: str):
    found, listed = find(name), SYMBOLS[name]["properties"]
    assert isinstance(found, popxl.dtype)
    facts = ("name", "is_complex", "is_int", "is_floating_point", "is_signed")
    assert {fact: getattr(found, fact) for fact in facts} == {f: listed[f] for f in facts}


@pytest.mark.parametrize("name", sorted(SYMBOLS))
def test_other_import_paths_lead_to_the_same_object(name: str):
    for path in SYMBOLS[name].get("also_importable_as", []):
        module, _, attribute = path.rpartition(".")
        assert getattr(importlib.import_module(module), attribute) is find(name)


@pytest.mark.parametrize("module", API["modules"])
def test_module(module: str):
    found, listed = importlib.import_module(module), API["modules"][module]
    assert hasattr(found, "__path__") == listed["is_package"]
    if listed["__all__"] is not None:
        assert sorted(found.__all__) == sorted(listed["__all__"])
    names = {*listed["functions"], *listed["classes"], *listed["constants"]} - INTERNAL
    assert {name for name in names if not hasattr(found, name)} == set()


@pytest.mark.parametrize("package", API["exports"])
def test_exports(package: str):
    found = importlib.import_module(package)
    for name, source in API["exports"][package].items():
        if source.startswith("module:"):
            assert getattr(found, name) is sys.modules[source.removeprefix("module:")]
        else:
            module, _, attribute = source.rpartition(".")
            assert getattr(found, name) is getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("module", API["submodules_shadowed_by_functions"])
def test_function_hides_the_module_of_its_name(module: str):
    package, _, name = module.rpartition(".")
    found = getattr(importlib.import_module(package), name)
    assert inspect.isfunction(found)
    assert found is getattr(sys.modules[module], name)


def test_a_changed_signature_would_be_seen():
    def add(lhs: popxl.Tensor, rhs: popxl.Tensor = None, *, out: Any = 1) -> None: ...

    symbol = SYMBOLS["popxl.ops.add"]
    wanted = expected_parameters(symbol)
    assert parameters(popxl.ops.add, "function") == wanted
    assert parameters(add, "function") != wanted
    assert parameters(popxl.Tensor.transpose, "function") != parameters(
        popxl.Tensor.transpose, "method"
    )
