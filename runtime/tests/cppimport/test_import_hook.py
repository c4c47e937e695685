"""Programs that compile a custom op with cppimport get the engine's."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cppimport.import_hook
import numpy as np
import popxl
import pytest
from popart import popart_exception

MARK = "// cppimport\n"
# How a program's own op function uses its binding.
PROGRAM = """
import cppimport.import_hook
import popxl
from popxl.context import get_current_context, op_debug_context
from popxl.ops.utils import check_in_graph, check_tensor_ipu_and_tile_set

from . import rotary_pos_embed_binding as binding


@op_debug_context
def rotate(x, sin, cos, rotary_dim):
    ctx = get_current_context()
    g = ctx.graph
    check_in_graph(g, x=x, sin=sin, cos=cos)
    check_tensor_ipu_and_tile_set(x=x, sin=sin, cos=cos)
    settings = ctx._get_op_settings("rotary_pos_embed")
    op = binding.RotaryPosEmbedOp.createOpInGraph(
        g._pb_graph,
        {0: x.id, 1: sin.id, 2: cos.id},
        {0: g._create_tensor_id("rotated")},
        rotary_dim,
        settings,
    )
    ctx._op_created(op)
    return popxl.Tensor._from_pb_tensor(op.outTensor(0))
"""
MakePackage = Callable[..., str]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakePackage]:
    """Makes a package ``<name>.rotary_pos_embed`` and returns that dotted name."""

    def make(name: str, source: str, binding: str = "rotary_pos_embed_binding") -> str:
        folder = tmp_path / name / "rotary_pos_embed"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
        (folder.parent / "__init__.py").write_text("")
        (folder / "rotary.py").write_text(PROGRAM)
        (folder / f"{binding}.cpp").write_text(source)
        return f"{name}.rotary_pos_embed"

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    made = {path.name for path in tmp_path.iterdir()}
    for module in [name for name in sys.modules if name.partition(".")[0] in made]:
        del sys.modules[module]


def rotated(x: np.ndarray, sin: np.ndarray, cos: np.ndarray, rotary_dim: int) -> np.ndarray:
    """y1 = x1 cos - x2 sin, y2 = x2 cos + x1 sin, element by element."""
    out, half = x.copy(), rotary_dim // 2
    sin, cos = (np.broadcast_to(t, (*x.shape[:2], half)) for t in (sin, cos))
    for b, s, h, i in np.ndindex(*x.shape[:3], half):
        x1, x2 = x[b, s, h, i], x[b, s, h, i + half]
        out[b, s, h, i] = x1 * cos[b, s, i] - x2 * sin[b, s, i]
        out[b, s, h, i + half] = x2 * cos[b, s, i] + x1 * sin[b, s, i]
    return out


@pytest.mark.parametrize("table", [(1, 3, 2), (2, 3, 2), (1, 1, 2), (2, 1, 2)])
def test_rotary_op_of_a_program(
    package: MakePackage, rng: np.random.Generator, table: tuple[int, ...]
):
    name = package("program_with_op", MARK + "class RotaryPosEmbedOp {};")
    rotate = importlib.import_module(f"{name}.rotary").rotate
    arrays = [rng.normal(size=n).astype(np.float32) for n in ((2, 3, 2, 6), table, table)]
    seen: list[Any] = []
    ir = popxl.Ir()
    with ir.main_graph as main:
        main.register_op_created_hook(lambda op: seen.append(op.opType()))
        stream = popxl.d2h_stream((2, 3, 2, 6), popxl.float32)
        with popxl.name_scope("attention"):
            out = rotate(*(popxl.variable(a) for a in arrays), 4)
        popxl.ops.host_store(stream, out)
    assert seen == ["RotaryPosEmbed", "HostStore"]
    assert out.name == "attention/rotated"
    with popxl.Session(ir, "ipu_model") as session:
        found = session.run()[stream]
    np.testing.assert_allclose(found, rotated(*arrays, 4), rtol=1e-6, atol=1e-6)


def test_shapes_are_checked(package: MakePackage):
    name = package("program_with_wrong_shape", MARK + "class RotaryPosEmbedOp {};")
    rotate = importlib.import_module(f"{name}.rotary").rotate
    with popxl.Ir().main_graph, pytest.raises(popart_exception, match="sin has shape"):
        rotate(*(popxl.variable(np.ones(n)) for n in ((2, 3, 2, 6), (3, 3, 2), (1, 3, 2))), 4)


@pytest.mark.parametrize(
    ("name", "source", "binding"),
    [
        ("other_class", MARK + "class OtherOp {};", "rotary_pos_embed_binding"),
        ("other_name", MARK + "class RotaryPosEmbedOp {};", "other_binding"),
    ],
)
def test_unknown_sources_are_named(package: MakePackage, name: str, source: str, binding: str):
    dotted = package(name, source, binding)
    with pytest.raises(ImportError, match=rf"{binding}\.cpp"):
        importlib.import_module(f"{dotted}.{binding}")


def test_sources_without_the_mark_are_no_modules(package: MakePackage):
    name = package("unmarked", "// plain\nclass RotaryPosEmbedOp {};")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{name}.rotary_pos_embed_binding")


def test_the_op_of_the_original_addons_is_not_taken_for_it(tmp_path: Path):
    source = tmp_path / "rotary_pos_embed_binding.cpp"
    source.write_text(MARK + "class RotaryPosEmbedOp {};")
    name = "popxl_addons.ops.rotary_pos_embed.rotary_pos_embed_binding"
    finder = next(f for f in sys.meta_path if isinstance(f, cppimport.import_hook._CppFinder))
    spec = finder.find_spec(name, [str(tmp_path)])
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ImportError, match=str(source)):
        spec.loader.exec_module(ModuleType(name))


def test_importing_the_hook_is_cheap():
    code = "import cppimport.import_hook, sys; print('popxl' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
