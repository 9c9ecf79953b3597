"""The notebooks: they run from the first cell to the last, on small settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples/notebooks"
SMALL: dict[str, dict[str, Any]] = {
    "quickstart": {"preset": "smoke"},
    "own_robot": {"preset": "smoke"},
    "compare_depths": {"preset": "smoke", "depths": (4, 8), "seeds": (0,), "width": 16, "env_steps": 2000},
}
PRINTED = {
    "quickstart": ("success", "retention", "policy.onnx", "a call takes", "of 10 episodes"),
    "own_robot": ("Nothing looks wrong", "cm from its goal after 100 control steps"),
    "compare_depths": (),
}


def outputs(cells: list[Any]) -> tuple[str, int]:
    """Return what cells printed, and how many pictures they drew."""
    found = [output for cell in cells for output in cell.get("outputs", [])]
    texts = ["".join(output["text"]) for output in found if output["output_type"] == "stream"]
    return "".join(texts), sum("image/png" in output.get("data", {}) for output in found)


def test_those_that_were_run_show_what_their_cells_did() -> None:
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == set(SMALL)
    for name, words in ((name, words) for name, words in PRINTED.items() if words):
        cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
        text, pictures = outputs(cells)
        assert pictures == 1 and all(word in text for word in words), name
        assert str(Path.home()) not in text and str(NOTEBOOKS.parents[2]) not in text


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_it_runs(name: str, tmp_path: Path) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    parameters.source += "".join(f"\n{key} = {value!r}" for key, value in SMALL[name].items())
    kernel = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=kernel).execute()
    text, pictures = outputs(notebook.cells)
    assert pictures == 1 and all(word in text for word in PRINTED[name])
    kinds = [output["output_type"] for cell in notebook.cells for output in cell.get("outputs", [])]
    assert kinds.count("display_data") == pictures, "a line of progress is no display"
