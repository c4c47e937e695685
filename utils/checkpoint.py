"""MAGMA checkpoints: a lazy reader of every published form, and the writer of random ones.

A checkpoint is a mapping from canonical names (`utils.checkpoint_layout`) to read-only arrays.
float16 and float32 arrays are views of the mapped file: opening reads the directory, and an array's
pages are read when its numbers are.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from utils.checkpoint_files import StoredTensor, open_tensors, same_content
from utils.checkpoint_layout import (
    PUBLISHED_POSITIONS,
    WORD_EMBEDDING,
    AdapterLayout,
    TensorEntry,
    canonical_name,
    check_family,
    configured_layout,
    detect_layout,
    embedding_row_counts,
    expected_tensors,
    is_ignored,
    model_sizes,
)
from utils.checkpoint_writer import write_random_checkpoint
from utils.errors import UserError
from utils.folder_layout import folder_embedding_rows, folder_tensors, is_folder_name, part_of
from utils.quantise import FORMAT_OF_CODES, SCALE_SUFFIX, QuantisedWeight

if TYPE_CHECKING:
    from config.config import MagmaConfig

__all__ = ["Checkpoint", "open_checkpoint", "write_random_checkpoint"]


class Checkpoint(Mapping[str, npt.NDArray[Any]]):
    """Lazy, read-only mapping from canonical names to arrays.

    Attributes:
        path: what was opened.
        layout: the adapter layout that the names show.
        ignored: names in the file that no model uses and that do no harm.
    """

    def __init__(self, path: Path, tensors: Mapping[str, StoredTensor]) -> None:
        """Use `open_checkpoint`."""
        self.path = path
        self.ignored = tuple(name for name in tensors if is_ignored(name))
        self._tensors = _resolve_aliases(path, tensors)
        self._scales = _take_scales(self._tensors)
        self.layout: AdapterLayout = detect_layout(self._tensors)
        self._embedding_rows: int | None = None

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """The array of a canonical name.

        A view of the mapped file; bfloat16 and float64 are converted to a float32 copy. Codes with
        scales, and the big matrices of a model folder in bfloat16, are a
        `utils.quantise.QuantisedWeight`, which stands for an array.

        Raises:
            UserError: the checkpoint lacks it.
        """
        stored = self._stored(name)
        if name in self._scales:
            codes, scales = stored.read(), self._scales[name].read()
            return QuantisedWeight.of_stored(FORMAT_OF_CODES[stored.dtype], codes, scales)  # type: ignore[return-value]
        if stored.dtype == "bfloat16" and self._is_run_as_stored(name):
            return QuantisedWeight.of_stored("bfloat16", stored.stored(), None)  # type: ignore[return-value]
        array = stored.read()
        if name == WORD_EMBEDDING and self._embedding_rows not in (None, array.shape[0]):
            array = _fit_rows(array, self._embedding_rows)
        return array

    def __contains__(self, name: object) -> bool:
        """Whether the checkpoint holds a canonical name."""
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        """Canonical names in the file's order."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Number of canonical names."""
        return len(self._tensors)

    @property
    def files(self) -> list[Path]:
        """The files that hold the tensors."""
        return list(dict.fromkeys(tensor.file for tensor in self._tensors.values()))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the array that a canonical name gives, without reading it."""
        stored = self._stored(name)
        shape = stored.shape
        if name in self._scales and FORMAT_OF_CODES[stored.dtype] == "int4":
            shape = (*shape[:-1], 2 * shape[-1])
        if name == WORD_EMBEDDING and self._embedding_rows is not None:
            return (self._embedding_rows, *shape[1:])
        return shape

    def dtype(self, name: str) -> str:
        """The stored type of a canonical name: float16, bfloat16, float32, bool, ..."""
        return self._stored(name).dtype

    @property
    def is_quantised(self) -> bool:
        """Whether some weights are codes with scales."""
        return bool(self._scales)

    @property
    def in_model_folder(self) -> bool:
        """Whether the tensors lie as in a model folder (`utils.model_folder`)."""
        return any(is_folder_name(name) for name in self._tensors)

    def _is_run_as_stored(self, name: str) -> bool:
        """Whether a tensor is one of the big matrices of a model folder."""
        is_matrix = len(self._stored(name).shape) > 1
        return is_matrix and part_of(name) is not None and self.in_model_folder

    def validate(self, config: MagmaConfig) -> None:
        """Checks that the checkpoint is exactly what ``config`` describes.

        From then on the word embedding has the configured number of rows; in a model folder it has
        further rows of zeros.

        Raises:
            UserError: another model or layout, other sizes; or keys that are missing, extra or
                misshapen: the first ones, how many, what was expected and found.
        """
        if not any(name.startswith(("lm.", "image_prefix.")) for name in self._tensors):
            raise UserError(f"{self.path}: holds no MAGMA tensors ({_some(self._tensors)})")
        check_family(self._tensors, self.path)
        self._check_layout(configured_layout(config))
        self._check_sizes(config)
        expected = expected_tensors(config, positions=self._positions())
        row_counts = embedding_row_counts(config)
        if self.in_model_folder:
            expected = folder_tensors(config)
            row_counts = (folder_embedding_rows(config),)
        self._check_names(expected)
        self._check_shapes(expected, row_counts)
        self._check_dtypes(expected)
        if not self.in_model_folder:
            self._embedding_rows = config.transformer.embedding.real_vocab_size

    def _stored(self, name: str) -> StoredTensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise UserError(f"{self.path}: lacks the tensor {name}") from None

    def _positions(self) -> int:
        for name, tensor in self._tensors.items():
            if name.endswith(".attention.bias") and len(tensor.shape) == 4:
                return tensor.shape[-1]
            if name.endswith(".attention.sin") and len(tensor.shape) == 2:
                return tensor.shape[0]
        return PUBLISHED_POSITIONS

    def _check_layout(self, wanted: AdapterLayout) -> None:
        if not any(name.startswith("lm.transformer.h.") for name in self._tensors):
            return  # the missing names say more
        for place, field in (("mlp", "ff_adapter"), ("attention", "attention_adapter")):
            found, asked = getattr(self.layout, place), getattr(wanted, place)
            kind = found.kind if found else "none"
            if kind != (asked.kind if asked else "none"):
                raise UserError(
                    f"{self.path}: its adapter layout is {self.layout.describe()}, the "
                    f"configuration asks for {wanted.describe()}; set transformer.{field}.mode to "
                    f"{kind}"
                )
            if found and found.layer_norm != asked.layer_norm:
                with_or_without = "with" if found.layer_norm else "without"
                raise UserError(
                    f"{self.path}: its {place} adapters come {with_or_without} a layer norm; "
                    f"set transformer.{field}.layer_norm to {found.layer_norm}"
                )

    def _check_sizes(self, config: MagmaConfig) -> None:
        """Names differing sizes of the whole model, rather than a thousand misshapen tensors."""
        found = model_sizes({name: t.shape for name, t in self._tensors.items()})
        asked = model_sizes({n: e.shape for n, e in expected_tensors(config).items()})
        different = [
            f"{field} = {size} (the configuration says {asked[field]})"
            for field, size in found.items()
            if size != asked[field]
        ]
        if different:
            raise UserError(
                f"{self.path}: holds a model of other sizes: {', '.join(different)}; "
                "choose the preset that this checkpoint was made for"
            )

    def _check_names(self, expected: Mapping[str, TensorEntry]) -> None:
        missing = [n for n, e in expected.items() if e.kind.required and n not in self._tensors]
        if missing:
            raise UserError(
                f"{self.path}: {_count(missing, 'tensor')} missing: {_some(missing)}; "
                "get the whole checkpoint, or choose the preset that it was made for"
            )
        extra = [name for name in self._tensors if name not in expected]
        if extra:
            raise UserError(
                f"{self.path}: {_count(extra, 'tensor')} unknown: {_some(extra)}; "
                "the checkpoint is of another model, or of another preset"
            )

    def _check_shapes(
        self, expected: Mapping[str, TensorEntry], row_counts: Collection[int]
    ) -> None:
        wrong = []
        for name in self._tensors:
            shape = expected[name].shape
            allowed = [shape]
            if name == WORD_EMBEDDING:
                allowed = [(rows, *shape[1:]) for rows in row_counts]
            if not expected[name].kind.required and shape == ():
                allowed.append((1,))
            if self.shape(name) not in allowed:
                wrong.append(f"{name} is {self.shape(name)}, expected {shape}")
        if wrong:
            raise UserError(
                f"{self.path}: {_count(wrong, 'tensor')} of the wrong shape: {_some(wrong)}; "
                "choose the preset that this checkpoint was made for"
            )

    def _check_dtypes(self, expected: Mapping[str, TensorEntry]) -> None:
        floats = ("float16", "bfloat16", "float32", "float64")
        wrong = [
            f"{name} is {tensor.dtype}"
            for name, tensor in self._tensors.items()
            if expected[name].kind.required
            and tensor.dtype not in floats
            and name not in self._scales
        ]
        if wrong:
            raise UserError(
                f"{self.path}: {_count(wrong, 'tensor')} of the wrong type: {_some(wrong)}; "
                f"expected one of {', '.join(floats)}"
            )


def open_checkpoint(path: str | os.PathLike[str], config: MagmaConfig | None = None) -> Checkpoint:
    """Opens a checkpoint without reading its tensors.

    Args:
        path: a ``.pt``, ``.bin`` or ``.pth`` file of PyTorch, with or without the level "module"; a
            ``.safetensors`` file; an index (``*.index.json``); or a folder with one of them,
            DeepSpeed's with a file ``latest`` included.
        config: if given, the checkpoint is validated against it.

    Returns:
        The checkpoint under canonical names.

    Raises:
        UserError: one line for whatever is wrong with the file or, given ``config``, its contents.
    """
    checkpoint = Checkpoint(Path(path), open_tensors(path))
    if config is not None:
        checkpoint.validate(config)
    return checkpoint


def _resolve_aliases(path: Path, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """One tensor per canonical name; two names of one tensor must agree."""
    resolved: dict[str, StoredTensor] = {}
    sources: dict[str, str] = {}
    prefix = "module." if all(name.startswith("module.") for name in tensors) else ""
    for name, tensor in tensors.items():
        if is_ignored(name):
            continue
        canonical = canonical_name(name.removeprefix(prefix))
        if canonical in resolved and not same_content(resolved[canonical], tensor):
            raise UserError(
                f"{path}: {sources[canonical]} and {name} are two names of one tensor "
                "but hold different numbers; the checkpoint is damaged or was edited"
            )
        if canonical not in resolved or name == canonical:
            resolved[canonical] = tensor
            sources[canonical] = name
    return resolved


def _take_scales(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Takes the scales of quantised weights out of all tensors; by the names of the weights."""
    weights = [
        name
        for name, tensor in tensors.items()
        if tensor.dtype in FORMAT_OF_CODES and name + SCALE_SUFFIX in tensors
    ]
    return {name: tensors.pop(name + SCALE_SUFFIX) for name in weights}


def _fit_rows(array: npt.NDArray[Any], rows: int | None) -> npt.NDArray[Any]:
    """Cuts surplus rows (a view) or appends zeros (a copy)."""
    if rows is None or array.shape[0] >= rows:
        return array[:rows]
    fitted = np.zeros((rows, *array.shape[1:]), array.dtype)
    fitted[: array.shape[0]] = array
    fitted.flags.writeable = False
    return fitted


def _count(items: Collection[str], noun: str) -> str:
    return f"{len(items)} {noun} is" if len(items) == 1 else f"{len(items)} {noun}s are"


def _some(items: Collection[str]) -> str:
    first = list(items)[:3]
    return ", ".join(first) + (", …" if len(items) > len(first) else "")
