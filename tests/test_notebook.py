"""magma_interactive.ipynb runs from the top, is thin, and is kept without outputs."""

from __future__ import annotations

import ast
import json
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "magma_interactive.ipynb"


def code_cells() -> list[dict]:
    return [c for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == "code"]


def test_outputs_are_cleared():
    for cell in code_cells():
        assert cell["outputs"] == []
        assert cell["execution_count"] is None


def test_cells_only_call_the_python_interface():
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code_cells()))
    imports = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imports == {"pathlib", "execution.magma", "execution.playground"}
    definitions = (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.With)
    assert not [node for node in ast.walk(tree) if isinstance(node, definitions)]


def test_one_line_names_the_model():
    lines = [line for cell in code_cells() for line in "".join(cell["source"]).splitlines()]
    assert sum(line.startswith("MODEL = ") for line in lines) == 1


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # Jupyter's own
def test_all_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("DATASETS_DIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}})
    client.execute()  # raises where a cell does
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    *_, box, answer, compared, generated, _ = outputs
    assert "application/vnd.jupyter.widget-view+json" in box[0].data
    text = ast.literal_eval(answer[0].data["text/plain"])
    assert text
    assert len(ast.literal_eval(compared[0].data["text/plain"])) == 4
    assert generated[0].text.split()[-2] in ("length", "eos", "stop_string")
    shown = [state.get("value") for state in client.widget_state.values()]
    assert text in shown
