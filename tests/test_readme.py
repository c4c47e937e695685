"""What the documents promise exists: commands, targets, files and links."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path.relative_to(ROOT)
    for pattern in ("*.md", "docs/**/*.md", "runtime/*.md")
    for path in ROOT.glob(pattern)
)
BENCHES = sorted(
    f"{folder}.{path.stem}"
    for folder in ("benchmarks", "runtime.benchmarks")
    for path in (ROOT / folder.replace(".", "/")).glob("bench_*.py")
)

PROGRAM_SOURCES = ("run_inference.py", "execution/command.py", "config/parsing.py")

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"""(?:src|href)=["']([^"']+)["']""")
MAKE = re.compile(r"\bmake ([a-z-]+(?: [a-z-]+)*)\b")
TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)
PROGRAM = re.compile(r"python (?:-m )?([\w./]+)")
QUOTED_PATH = re.compile(r"`((?:[\w.-]+/)+(?:[\w.-]+)?|[\w-]+\.(?:py|md|txt|toml|ipynb))`")


def code(text: str) -> str:
    """The text in backticks and fences of a document."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))


def broken_links(text: str, folder: Path) -> list[str]:
    """Targets of relative links and pictures that do not exist."""
    targets = [*LINK.findall(text), *IMAGE.findall(text)]
    local = [target.split("#")[0] for target in targets if "://" not in target]
    return [target for target in local if target and not (folder / target).exists()]


def unknown_targets(text: str, makefile: str) -> set[str]:
    """Words after `make` in a document's code that are no target."""
    targets = set(TARGET.findall(makefile))
    return {word for words in MAKE.findall(code(text)) for word in words.split()} - targets


def missing_programs(text: str) -> list[str]:
    """Programs that a document runs with python and that do not exist."""
    names = PROGRAM.findall(code(text))
    own = [name for name in names if name.endswith(".py") or name.startswith("benchmarks.")]
    paths = [name if name.endswith(".py") else name.replace(".", "/") + ".py" for name in own]
    return [path for path in paths if not (ROOT / path).exists()]


def unknown_options(text: str, source: str) -> set[str]:
    """Long options in a document's `run_inference.py` commands that the program does not name."""
    lines = [line for line in code(text).splitlines() if "run_inference.py" in line]
    options = {name for line in lines for name in re.findall(r"--(\w+)\b(?!\.)", line)}
    known = {
        node.value.removeprefix("--")
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return options - known - {"help"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_lead_somewhere(document):
    path = ROOT / document
    assert broken_links(path.read_text(), path.parent) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_make_targets_exist(document):
    assert unknown_targets((ROOT / document).read_text(), (ROOT / "Makefile").read_text()) == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_programs_exist(document):
    assert missing_programs((ROOT / document).read_text()) == []


@pytest.mark.parametrize("document", ["README.md", "docs/layout.md", "docs/debugging.md"])
def test_named_files_exist(document):
    names = QUOTED_PATH.findall((ROOT / document).read_text())
    folders = (ROOT, ROOT / "runtime", ROOT / "runtime/src", ROOT / "runtime/src/popxl_torch")
    assert names
    assert [name for name in names if not any((f / name).exists() for f in folders)] == []


def test_readme_names_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert {"demo", "test"} <= {word for words in MAKE.findall(text) for word in words.split()}


def test_readme_uses_options_that_exist():
    sources = [(ROOT / name).read_text() for name in PROGRAM_SOURCES]
    assert unknown_options((ROOT / "README.md").read_text(), "\n".join(sources)) == set()


def test_readme_python_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("DATASETS_DIR", str(tmp_path))
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "length" in printed or "eos" in printed
    assert printed.endswith((" yes\n", " no\n"))
    assert names["embeddings"].shape[1] == 192


def test_the_pipeline_of_checks_calls_make():
    assert "make lint typecheck test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("bench", BENCHES)
def test_benchmarks_can_be_imported_and_run(bench):
    assert callable(importlib.import_module(bench).main)


def test_benchmarks_that_make_runs_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = re.findall(r"[\w.]+\.bench_\w+", makefile)
    assert sorted(named) == BENCHES


def test_requirements_for_ipus_leave_the_runtime_out():
    def packages(name: str) -> set[str]:
        lines = (line.strip() for line in (ROOT / name).read_text().splitlines())
        return {re.split(r"[<>=~! ]", line)[0] for line in lines if line and line[0] not in "#-"}

    ipu = packages("requirements-ipu.txt")
    assert "-e ./runtime" in (ROOT / "requirements.txt").read_text()
    assert not any("runtime" in package for package in ipu)
    tools = {"ruff", "mypy", "types-PyYAML"}
    assert packages("requirements.txt") - tools == ipu


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (lambda: broken_links("[a](no/such.md) [b](https://x) ![c](README.md)", ROOT), 1),
        (lambda: broken_links('<img src="no.svg">', ROOT), 1),
        (lambda: unknown_targets("`make demo nonsense`", "demo:\n"), 1),
        (lambda: unknown_targets("we make nonsense", "demo:\n"), 0),
        (lambda: missing_programs("`python no_such.py`"), 1),
        (lambda: missing_programs("`python -m benchmarks.no_such`"), 1),
        (lambda: unknown_options("`python run_inference.py --nonsense 1`", "'--prompt'"), 1),
        (lambda: unknown_options("`python run_inference.py --prompt x`", "'--prompt'"), 0),
    ],
)
def test_the_checks_find_what_they_should(check, expected):
    assert len(check()) == expected
