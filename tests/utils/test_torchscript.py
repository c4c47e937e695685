"""Tensors of TorchScript archives are read as torch reads them, and nothing else is."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import torchscript
from utils.checkpoint_files import open_tensors
from utils.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of making archives


class Part(torch.nn.Module):
    """Tensors of several types, shared and not contiguous."""

    def __init__(self, base: torch.Tensor) -> None:
        super().__init__()
        self.turned = torch.nn.Parameter(base.t())
        self.register_buffer("late", base[1:, 2:])
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("flags", base > 0)
        self.names = ["a", "b"]
        self.scale = 2.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What a program needs."""
        return x @ self.turned * self.scale


class Whole(torch.nn.Module):
    """Parts in a list, and one of them in half precision."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__()
        bases = [torch.from_numpy(rng.standard_normal((4, 5))).float() for _ in range(3)]
        self.parts = torch.nn.ModuleList([Part(base) for base in bases])
        self.parts[1].half()
        self.parts[2].bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What a program needs."""
        return self.parts[0](x)


@pytest.fixture
def archive(rng, tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    whole = Whole(rng)
    torch.jit.save(torch.jit.script(whole), tmp_path / "a.pt")
    return tmp_path / "a.pt", whole.state_dict()


def test_every_tensor_is_read(archive):
    path, expected = archive
    found = open_tensors(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tuple(tensor.shape), name
        assert found[name].dtype == str(tensor.dtype).removeprefix("torch."), name
        wanted = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
        np.testing.assert_array_equal(found[name].read(), wanted.numpy(), err_msg=name)
        assert not found[name].read().flags.writeable


def rewritten(path: Path, ending: str, content: bytes | None) -> Path:
    """The archive with one member changed or left out."""
    target = path.with_name("b.pt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w") as copy:
        for name in source.namelist():
            if not name.endswith(ending):
                copy.writestr(name, source.read(name))
            elif content is not None:
                copy.writestr(name, content)
    return target


class Run:
    """A pickle that would run a command."""

    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Run()), "refused: the TorchScript archive asks for builtins.print"),
        (pickle.dumps(3), "holds no tensors"),
        (b"", "is damaged"),
        (b"\x80\x02", "is damaged"),
        (b"\xff" * 50, "is damaged"),
        (None, "is damaged"),
    ],
)
def test_other_pickles_are_refused(archive, capsys, content, message):
    with pytest.raises(UserError, match=message):
        open_tensors(rewritten(archive[0], "/data.pkl", content))
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize("numbers", [(-1, 2, 1), (0, True, 1), (0, 1, 1 << 70), (0, 1 << 50, 0)])
def test_impossible_sizes_are_damage(numbers):
    offset, size, stride = numbers
    with pytest.raises(UserError, match="is damaged"):
        torchscript._tensor(("storage", "FloatStorage", "0"), offset, (size,), (stride,))


@pytest.mark.parametrize(("content", "message"), [(None, "is damaged"), (b"1234", "too short")])
def test_missing_numbers_are_named(archive, content, message):
    tensors = open_tensors(rewritten(archive[0], "/data/0", content))
    with pytest.raises(UserError, match=message):
        [tensor.read() for tensor in tensors.values()]
