"""Marker annotations."""

from typing import Any, TypeVar

T = TypeVar("T")


def NewAliasAnnotation(name: str, tp: T) -> T:
    """A unique function object called ``name``, used as an annotation only."""

    def marker(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{name} is an annotation; it cannot be called.")

    marker.__name__ = marker.__qualname__ = name
    marker.__supertype__ = tp  # type: ignore[attr-defined]
    return marker  # type: ignore[return-value]
