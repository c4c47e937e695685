"""Importing this module lets ``import X`` find ``X.cpp`` if its first line names cppimport."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

_MARK = "cppimport"


class _KnownOps(Loader):
    """Gives a module the classes that the engine has for its C++ source."""

    def __init__(self, source: Path) -> None:
        self._source = source

    def exec_module(self, module: ModuleType) -> None:
        """Fill the module.

        Raises:
            ImportError: the source is none of the custom ops that the engine has.
        """
        from cppimport._known_ops import KNOWN_OPS

        package, *parts = module.__name__.split(".")
        # The original popxl_addons has an op of the same name that pairs other elements.
        known = {} if package == "popxl_addons" else KNOWN_OPS
        classes = known.get(".".join(parts[-2:]), {})
        text = self._source.read_text()
        if not classes or any(each not in text for each in classes):
            raise ImportError(
                f"{self._source} is a custom op that popxl-torch does not know and cannot compile;"
                f" it knows <package>.{', '.join(KNOWN_OPS)}",
                name=module.__name__,
                path=str(self._source),
            )
        vars(module).update(classes)


class _CppFinder(MetaPathFinder):
    """Finds marked C++ files. It comes last, so that compiled modules win."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module that is a marked C++ file in ``path``, else None."""
        file_name = fullname.rpartition(".")[2] + ".cpp"
        for folder in sys.path if path is None else path:
            source = Path(folder) / file_name
            if source.is_file() and _MARK in source.read_text().partition("\n")[0]:
                return importlib.util.spec_from_loader(
                    fullname, _KnownOps(source), origin=str(source)
                )
        return None


if not any(isinstance(finder, _CppFinder) for finder in sys.meta_path):
    sys.meta_path.append(_CppFinder())
