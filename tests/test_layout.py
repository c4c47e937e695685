"""Imports point down, never beside or above; and every source has its tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the top. Names of one row may import each other.
# Training stands apart, beside the application: nothing of either imports the other.
TRAINING = ("train", "training")
LAYERS = (
    ("run_inference", "inference", "evaluate"),
    ("execution",),
    ("modelling",),
    ("config", "utils"),
)
LEVEL = {name: height for height, row in enumerate(reversed(LAYERS)) for name in row}


def layer_of(path: Path) -> str:
    """The folder or program at the root that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def layered_files() -> list[Path]:
    """Every Python file of the application."""
    folders = [ROOT / name for name in LEVEL if (ROOT / name).is_dir()]
    programs = [ROOT / f"{name}.py" for name in LEVEL if not (ROOT / name).is_dir()]
    return [*programs, *(path for folder in folders for path in sorted(folder.rglob("*.py")))]


def imported(source: str) -> set[str]:
    """Top-level names that a source text imports, anywhere in it, for type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {item.name.split(".")[0] for item in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide the layer"
            found.add((node.module or "").split(".")[0])
    return found


def upward(layer: str, source: str) -> set[str]:
    """Layers above `layer` that a source text imports."""
    return {name for name in imported(source) & set(LEVEL) if LEVEL[name] > LEVEL[layer]}


TESTED = [
    path.relative_to(ROOT)
    for path in [*layered_files(), ROOT / "train.py", *sorted((ROOT / "training").rglob("*.py"))]
    if path.name != "__init__.py"
]


@pytest.mark.parametrize("path", layered_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    assert upward(layer_of(path), path.read_text()) == set()


def test_training_imports_neither_the_application_nor_popxl():
    files = [ROOT / "train.py", *sorted((ROOT / "training").rglob("*.py"))]
    foreign = {name for name in LEVEL if LEVEL[name] > LEVEL["config"]}
    foreign |= {"popxl", "popxl_addons", "popart", "popdist", "popxl_torch", "tests"}
    assert len(files) > 5
    assert {str(path): imported(path.read_text()) & foreign for path in files} == {
        str(path): set() for path in files
    }


@pytest.mark.parametrize("path", layered_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_application_imports_no_training(path: Path):
    assert imported(path.read_text()) & set(TRAINING) == set()


def test_every_layer_has_files():
    assert {layer_of(path) for path in layered_files()} == set(LEVEL)


@pytest.mark.parametrize(
    ("layer", "source", "found"),
    [
        ("modelling", "from execution.phases import Phase", {"execution"}),
        ("utils", "def f():\n    import run_inference", {"run_inference"}),
        ("config", "import modelling.gptj.attention as a", {"modelling"}),
        ("execution", "import inference, utils.log\nfrom config import config", {"inference"}),
        ("run_inference", "from inference import inference\nimport execution", set()),
        ("utils", "from config.config import MagmaConfig", set()),
    ],
)
def test_the_check_finds_upward_imports(layer: str, source: str, found: set[str]):
    assert upward(layer, source) == found


# Sources without tests of that name, and where they are tested instead.
TESTED_ELSEWHERE = {
    "run_inference.py": "tests/test_cli.py",
    "execution/cached.py": "tests/test_schemes.py",
    "modelling/adapters.py": "tests/modelling/test_gptj.py",
    "training/sources.py": "tests/training/test_convert_dataset.py",
    "training/world/kinds.py": "tests/training/world/test_scenes.py",
    "training/world/make_emoji.py": "tests/training/world/test_pictures.py",
    "utils/model_folder_rows.py": "tests/utils/test_model_folder_writer.py",
    "utils/random_tensors.py": "tests/utils/test_checkpoint_writer.py",
    "utils/safetensors_header.py": "tests/utils/test_checkpoint_files.py",
}


def mirrors(source: Path) -> list[Path]:
    """Where a source's tests may be: in a file of its name, or of its package's."""
    folder = ROOT / "tests" / source.parent
    return [folder / f"test_{source.name}", folder.parent / f"test_{folder.name}.py"]


@pytest.mark.parametrize("path", TESTED, ids=lambda path: str(path))
def test_tests_mirror_sources(path: Path):
    elsewhere = TESTED_ELSEWHERE.get(str(path))
    mirrored = any(mirror.is_file() for mirror in mirrors(path))
    assert mirrored == (elsewhere is None)
    assert elsewhere is None or (ROOT / elsewhere).is_file()


def test_what_is_tested_elsewhere_exists():
    assert set(TESTED_ELSEWHERE) <= {str(path) for path in TESTED}
