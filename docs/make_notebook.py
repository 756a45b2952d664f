"""Writes docs/examples/first_run.ipynb; the tests execute it."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CELLS = (
    ("md", "# A first run\n\nRun two tasks on two SAEs of the built-in world, read the numbers, and compare the SAEs."),
    (
        "code",
        "import saebench_meta\n\n"
        "result = saebench_meta.run(\n"
        '    ["atlas:batchtopk-128", "atlas:batchtopk-256"], tasks="core", out="first-run", profile="quick"\n'
        ")\n"
        "result",
    ),
    (
        "md",
        "Every metric with its interval, sample size, direction and controls is a row of a data frame. `order holds` "
        "says whether the metric tells the SAE from its controls as it should.",
    ),
    (
        "code",
        'frame = result.frame(main=True)\nframe[["subject", "metric", "value", "ci_low", "ci_high", "order holds"]]',
    ),
    (
        "md",
        "Two intervals that overlap are not a test. The two runs saw the same documents, so their difference can be "
        "taken document by document.",
    ),
    (
        "code",
        "from pathlib import Path\n\n"
        "import pandas as pd\n\n"
        "from saebench_meta.compare import compare\n\n"
        '[core] = compare(Path("first-run/atlas-batchtopk-128"), Path("first-run/atlas-batchtopk-256"))\n'
        'pd.DataFrame(core.to_json()["metrics"]).T[["a", "b", "better", "verdict"]]',
    ),
    ("md", "An SAE is a plain object with weights; its decoder directions are the rows of `W_dec`."),
    (
        "code",
        'sae = saebench_meta.load_sae("atlas:batchtopk-256")\n'
        "cosines = sae.unit_decoder() @ sae.unit_decoder().T\n"
        "sae, float(cosines.fill_diagonal_(0).max())",
    ),
)


def notebook() -> nbformat.NotebookNode:
    """The notebook without outputs."""
    cells = []
    for number, (kind, text) in enumerate(CELLS):
        cell = new_markdown_cell(text) if kind == "md" else new_code_cell(text)
        cell["id"] = f"cell-{number}"
        cells.append(cell)
    metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return new_notebook(cells=cells, metadata=metadata)


if __name__ == "__main__":
    path = Path(__file__).parent / "examples" / "first_run.ipynb"
    nbformat.write(notebook(), path)
