"""The example notebook is current and runs from its first cell to its last."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

DOCS = Path(__file__).parents[1] / "docs"


def test_the_notebook_is_what_its_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_notebook", DOCS / "make_notebook.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shipped = nbformat.read(DOCS / "examples" / "first_run.ipynb", as_version=4)
    assert [c.source for c in shipped.cells] == [c.source for c in module.notebook().cells]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(DOCS / "examples" / "first_run.ipynb", as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    text = " ".join(str(o.get("data", {}).get("text/plain", "")) for o in outputs)
    assert "explained_variance" in text and "atlas-batchtopk-256" in text
    assert (tmp_path / "first-run").is_dir()
