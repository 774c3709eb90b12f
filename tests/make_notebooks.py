"""Execute the notebooks: notebooks/NAME.py becomes NAME.ipynb, with its outputs.

python tests/make_notebooks.py [NAME ...]
"""

import sys
import tempfile
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in place, in an empty folder; raises for one that fails."""
    with tempfile.TemporaryDirectory() as folder:
        options = {"timeout": 600, "coalesce_streams": True, "record_timing": False}
        where = {"metadata": {"path": folder}}
        NotebookClient(notebook, kernel_name="python3", resources=where, **options).execute()


def main(names: list[str]) -> None:
    for name in names or NAMES:
        notebook, begin = jupytext.read(FOLDER / f"{name}.py"), time.monotonic()
        execute(notebook)
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")
        print(f"{name}: {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
