"""Every notebook runs from a clean kernel, and what is stored in it is such a run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parents[1] / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))

LARGEST_BYTES = 300_000
CELL_SECONDS = 300

# Folders that exist on one machine only. Word boundaries keep "and/or" and "his/her" out of it.
MACHINE_PATH = re.compile(r"(?<![\w.])/(home|root|tmp|var|work|mnt|Users|private)/|[A-Z]:\\\\")


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    param: Path = request.param
    return param


def read(path: Path) -> NotebookNode:
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    return notebook


@pytest.fixture
def stored(path: Path) -> NotebookNode:
    return read(path)


@pytest.fixture
def clean_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Keeps what a kernel writes under tmp_path; returns where its temporary files go."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    return temporary


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts_of(cell: NotebookNode, stream: str | None = None) -> Iterator[str]:
    """What a cell put out as text: everything, or one stream of it."""
    for output in cell.outputs:
        if output.output_type == "stream" and stream in (None, output.name):
            yield output.text
        elif stream is None:
            yield from (str(v) for kind, v in output.get("data", {}).items() if "image" not in kind)


def kinds_of(notebook: NotebookNode) -> list[list[str]]:
    """What kinds of output each code cell has; stderr aside, where libraries greet a new user.

    Each kind counts once: print may arrive in one piece or in several.
    """
    return [
        sorted(
            {
                kind
                for output in cell.outputs
                if output.get("name") != "stderr"
                for kind in (output.output_type, *output.get("data", {}))
            }
        )
        for cell in code_cells(notebook)
    ]


def files_of(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if ".ipynb_checkpoints" not in path.parts}


def test_there_are_notebooks_and_the_readme_lists_each() -> None:
    assert PATHS
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\w+\.ipynb)\)", readme)) == {path.name for path in PATHS}


def test_outputs_are_stored(stored: NotebookNode) -> None:
    kinds = {kind for cell in kinds_of(stored) for kind in cell}
    assert {"stream", "display_data", "image/png"} <= kinds


def test_stored_outputs_are_of_one_run_from_top_to_bottom(stored: NotebookNode) -> None:
    counts = [cell.execution_count for cell in code_cells(stored)]
    assert counts == list(range(1, len(counts) + 1))


def test_stored_outputs_hold_no_errors_and_no_warnings(stored: NotebookNode) -> None:
    for cell in code_cells(stored):
        assert not [output for output in cell.outputs if output.output_type == "error"]
        assert list(texts_of(cell, "stderr")) == []
        assert not any("Warning" in text for text in texts_of(cell))


def test_nothing_names_a_folder_of_one_machine(stored: NotebookNode) -> None:
    texts = [cell.source for cell in stored.cells]
    texts += [text for cell in code_cells(stored) for text in texts_of(cell)]
    assert [text for text in texts if MACHINE_PATH.search(text) or str(Path.home()) in text] == []


def test_a_notebook_is_small(path: Path) -> None:
    assert path.stat().st_size < LARGEST_BYTES


def test_a_notebook_defines_nothing_that_could_be_reused(stored: NotebookNode) -> None:
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code_cells(stored):
        assert not [n for n in ast.walk(ast.parse(cell.source)) if isinstance(n, definitions)]


@pytest.mark.slow
def test_a_notebook_runs_from_a_clean_kernel(
    path: Path, stored: NotebookNode, clean_machine: Path
) -> None:
    before = files_of(FOLDER)
    fresh = read(path)
    client = NotebookClient(
        fresh,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(FOLDER)}},
    )
    client.execute()
    complaints = [text for cell in code_cells(fresh) for text in texts_of(cell, "stderr")]
    assert not any("Warning" in text for text in complaints), complaints
    assert kinds_of(fresh) == kinds_of(stored)
    assert files_of(FOLDER) == before
    # Libraries may leave small files of their own in the temporary folder; bundles must go.
    assert list(clean_machine.rglob("manifest.json")) == []
