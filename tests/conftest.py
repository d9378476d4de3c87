"""Helpers that tests of both tools may use."""
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Python as strict as it can be with libraries of several years: an old matplotlib is deprecated by a new pyparsing.
STRICT = "-W", "error", "-W", "ignore::DeprecationWarning"


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    "Python's own handler, here and in the processes that tests start: a background job begins with SIGINT ignored."
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.fixture(scope="session")
def forks():
    "Processes of tests/library, from a server that has imported all they need, which takes seconds."
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if context.get_start_method() == "spawn":
        return context
    from multiprocessing import forkserver
    context.set_forkserver_preload(["exp.nb14", "test_data", "test_training", "test_data_torture"])
    with pytest.MonkeyPatch.context() as env:
        env.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
        env.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def make_nb(path: Path, *cells, **changes) -> Path:
    "Writes a notebook; a cell is its code, markdown if that begins with `md:`, or a dict of what is not as usual."
    made = []
    for i, c in enumerate(cells):
        given = c if isinstance(c, dict) else {"source": c}
        cell = {"cell_type": "code", "execution_count": None, "id": f"cell-{i + 1}", "metadata": {}, "outputs": []}
        if given["source"][:3] == "md:":
            given = given | {"source": given["source"][3:]}
            cell = {"cell_type": "markdown", "id": cell["id"], "metadata": {}}
        source = given["source"].splitlines(keepends=True) if isinstance(given["source"], str) else given["source"]
        made.append({k: v for k, v in (cell | given | {"source": source}).items() if v is not ...})
    nb = {"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5} | changes
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(nb, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def run_tool(tool: str, *args, cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    "Runs `tools/<tool>.py` in a process of its own; its output is text."
    return subprocess.run([sys.executable, ROOT / "tools" / f"{tool}.py", *map(str, args)], cwd=cwd,
                          capture_output=True, encoding="utf-8", timeout=120, **kwargs)
