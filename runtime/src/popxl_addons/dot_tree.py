"""DotTree: an ordered tree of named leaves, read by dotted paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

from popxl_addons.utils import OrderedDict

L = TypeVar("L")
K = TypeVar("K")
V = TypeVar("V")
CLS = TypeVar("CLS", bound="DotTree")


def sanitise(name: str) -> str:
    """`name` as a Python identifier: every non-word character becomes `_`."""
    name = re.sub(r"\W", "_", name)
    return f"_{name}" if name[:1].isdigit() else name


def to_mapping(key: DotTree[K], value: DotTree[V]) -> dict[K, V]:
    """Leaf of `key` to leaf of `value` for each flat key that both have, in `key`'s order."""
    values = value.to_dict()
    return {leaf: values[flat] for flat, leaf in key.to_dict().items() if flat in values}


def _insertion_key(key: str | int) -> str:
    if isinstance(key, str):
        return key
    if key < 0:
        raise ValueError(f"DotTree: an integer key is not negative, got {key}")
    return str(int(key))


def _check_component(component: str) -> None:
    if not (component.isnumeric() or component.isidentifier()):
        raise ValueError(f"DotTree: {component!r} is not a valid python identifier")


class DotTree(Generic[L]):
    """An ordered tree. A node maps single-component keys to leaves or to other trees.

    A flat key is a dotted path (`"layer.0.weight"`). Trees are stored by reference. A tree
    has no length, equality or truth of its own: `bool(tree)` is always true.
    """

    def __init__(self: CLS, **kwargs: L | CLS) -> None:
        self._map: OrderedDict[str, Any] = OrderedDict()
        for key, value in kwargs.items():
            self.insert(key, value)

    def __getattr__(self, key: str) -> Any:
        # Private names are never keys that programs read so; asking the tree for them would
        # recurse for ever while an instance is half made (copy, pickle).
        if key.startswith("__") or key == "_map":
            raise AttributeError(key)
        try:
            return self._map[key]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__} has no key {key!r}. Keys: {', '.join(self.keys())}"
            ) from None

    def __getitem__(self: CLS, key: str | int) -> L | CLS:
        return self.get(key)

    def _read_component(self, key: str | int) -> str:
        if isinstance(key, str):
            return str(int(key)) if key.isnumeric() else key
        if key >= 0:
            return str(int(key))
        numbers = [int(k) for k in self._map if k.isnumeric()]
        if not numbers:
            raise ValueError(f"DotTree: no numeric key to count {key} from")
        return str(max(numbers) + 1 + key)

    def get(self: CLS, key: str | int) -> L | CLS:
        """The leaf or sub-tree under a flat key or an integer.

        Negative integers count from the largest numeric key.

        Raises:
            KeyError: there is none, or the path leads through a tree of another class.
        """
        head, dot, rest = key.partition(".") if isinstance(key, str) else (key, "", "")
        component = self._read_component(head)
        if component not in self._map:
            raise KeyError(f"{key!r} (keys: {', '.join(self._map)})")
        child = self._map[component]
        if not dot:
            return child
        if not isinstance(child, type(self)):
            raise KeyError(f"{key!r}: {head!r} is no {type(self).__name__}")
        return child.get(rest)

    def insert(self: CLS, key: str | int, value: L | CLS, overwrite: bool = False) -> None:
        """Store `value` under a flat key or a non-negative integer.

        Args:
            overwrite: allow the first component to exist. Only intermediate trees are merged;
                what lies under the last component is replaced.

        Raises:
            ValueError: a component is no identifier or number, or already exists.
        """
        head, dot, rest = _insertion_key(key).partition(".")
        _check_component(head)
        if head in self._map and not overwrite:
            raise ValueError(f"DotTree: key {head!r} already exists")
        if not dot:
            self._map[head] = value
            return
        # A copy, so that a failing nested insert changes nothing.
        child = self._map.get(head)
        child = child.copy() if isinstance(child, type(self)) else type(self)()
        child.insert(rest, value, overwrite)
        self._map[head] = child

    def update(self: CLS, values: CLS, overwrite: bool = False) -> None:
        """`insert` each top-level entry of `values`. Not a deep merge."""
        for key, value in values.copy()._map.items():
            self.insert(key, value, overwrite)

    def pop(self, key: str) -> Any:
        """Remove and return what lies under a flat key, in place.

        Raises:
            KeyError: there is none.
        """
        head, dot, rest = key.partition(".")
        if not dot:
            return self._map.pop(head)
        child = self._map[head]
        if not isinstance(child, DotTree):
            raise KeyError(key)
        return child.pop(rest)

    def copy(self: CLS) -> CLS:
        """A new tree with the same leaves; nested trees are copied."""
        return self._map_leaves(lambda leaf: leaf)

    def filter_keys(self: CLS, keys: Iterable[str | int]) -> CLS:
        """A new tree with these flat keys only, in this order.

        Raises:
            ValueError: a key is given twice.
            KeyError: a key is missing.
        """
        new, seen = type(self)(), set()
        for key in keys:
            if str(key) in seen:
                raise ValueError(f"DotTree.filter_keys: {key!r} is given twice")
            seen.add(str(key))
            new.insert(key, self.get(key), overwrite=True)
        return new

    def keys(self) -> list[str]:
        """Keys of the top level."""
        return list(self._map)

    def keys_flat(self) -> list[str]:
        """Flat keys of all leaves, depth first."""
        return list(self.to_dict())

    def values(self) -> list[Any]:
        """Leaves and trees of the top level."""
        return list(self._map.values())

    def values_flat(self) -> list[Any]:
        """All leaves, depth first."""
        return list(self.to_dict().values())

    def len(self) -> int:
        """Number of entries of the top level."""
        return len(self._map)

    def len_flat(self) -> int:
        """Number of leaves."""
        return len(self.to_dict())

    def to_mapping(self, values: DotTree[V]) -> dict[L, V]:
        """Leaf of this tree to leaf of `values` for each flat key that both have."""
        return to_mapping(self, values)

    def to_dict(self) -> OrderedDict[str, L]:
        """Flat key to leaf, depth first in insertion order."""
        flat: OrderedDict[str, Any] = OrderedDict()
        self._flatten("", flat)
        return flat

    def _flatten(self, prefix: str, flat: dict[str, Any]) -> None:
        """Add the leaves to ``flat``."""
        for key, value in self._map.items():
            if isinstance(value, DotTree):
                value._flatten(f"{prefix}{key}.", flat)
            else:
                flat[prefix + key] = value

    @classmethod
    def from_dict(cls: type[CLS], d: Mapping[str | int, L | DotTree[L]]) -> CLS:
        """A tree from flat keys. Values may be leaves or trees; missing nodes are `cls`.

        Raises:
            AttributeError: a key leads through a leaf.
            ValueError: a key already exists or is not valid.
        """
        tree = cls()
        own = {id(tree)}
        for key, value in d.items():
            *path, last = _insertion_key(key).split(".")
            tree._node(path, own).insert(last, value)
        return tree

    def _node(self, path: list[str], own: set[int]) -> DotTree[Any]:
        """The node under `path`, made where missing. Trees that are not in `own` were passed
        in by the caller and are copied before they are changed."""
        node: DotTree[Any] = self
        for component in path:
            _check_component(component)
            child = node._map.get(component)
            if child is None and component not in node._map:
                child = type(self)()
            elif not isinstance(child, DotTree):
                raise AttributeError(f"DotTree: {component!r} of {'.'.join(path)!r} is a leaf")
            elif id(child) not in own:
                child = child.copy()
            own.add(id(child))
            node._map[component] = child
            node = child
        return node

    def unpack(self) -> tuple[list[str], list[L]]:
        """Keys and leaves, sorted by flat key as strings."""
        items = sorted(self.to_dict().items(), key=lambda item: item[0])
        # A zip object, as programs that unpack it and programs that zip it again both accept.
        return zip(*items, strict=True) if items else ([], [])  # type: ignore[return-value]

    @classmethod
    def pack(cls: type[CLS], keys: Iterable[str | int], values: Iterable[L]) -> CLS:
        """`from_dict` of keys and values, up to the shorter of the two."""
        return cls.from_dict(dict(zip(keys, values, strict=False)))

    def map(self: CLS, fn: Callable[[L], L]) -> CLS:
        """A new tree of the same class with `fn` applied to each leaf."""
        return self._map_leaves(fn)

    def _map_leaves(self: CLS, fn: Callable[[Any], Any]) -> CLS:
        new = type(self)()
        for key, value in self._map.items():
            new._map[key] = value._map_leaves(fn) if isinstance(value, DotTree) else fn(value)
        return new

    def _clear(self) -> None:
        """Remove every leaf in place. Nodes stay, because parents hold them."""
        for key, value in list(self._map.items()):
            if isinstance(value, DotTree):
                value._clear()
            else:
                del self._map[key]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()!r})"

    def __contains__(self, key: Any) -> bool:
        try:
            self.get(key)
        except KeyError:
            return False
        return True
