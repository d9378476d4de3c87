#!/usr/bin/env python
"""Exports the `#export` cells of `nbs/05a_foundations.ipynb` to the module `exp/nb05a.py`, and brings edits back.

Nothing is executed. Every notebook is read, every module built and compiled in memory before the first byte is written.
Each block of a module carries the id and a digest of its cell, so that an edit made there, or in the notebook since, is
noticed and never lost. Notebooks in subfolders, and those whose name begins with no chapter number, are not exported.
"""
import gc
import sys
from types import SimpleNamespace

from command import run
from common import Misuse
from exporter import export


def describe(*paths, all=False, check=False, update=False, prune=False, force=False) -> SimpleNamespace:
    """Exports notebooks to modules, nbs/05a_foundations.ipynb to exp/nb05a.py. Exit status: 0 done, 1 faults, 2 misuse.

    PATHS  notebooks; all of the project's where none is named
    --all  all notebooks
    --check  write nothing; show each module that is not what its notebook says, exit with 1 if there is one
    --update  bring edits made in modules back into their notebooks
    --prune  remove modules that no notebook makes
    --force  overwrite modules that were edited by hand
    """
    return SimpleNamespace(**locals())


def act(paths, all: bool, check: bool, update: bool, prune: bool, force: bool) -> int:
    "Refuses flags that contradict each other, or exports; returns the exit status."
    if check and (update or prune or force):
        raise Misuse("--check writes nothing: leave out the other flags")
    if update and force:
        raise Misuse("--update keeps edits that --force overwrites: leave out one of them")
    if paths and (all or prune):
        raise Misuse("--all and --prune are about all notebooks: name none")
    return export(*paths, check=check, update=update, prune=prune, force=force)


def main(argv: list[str] | None = None) -> int:
    "Runs the command line, returns the exit status."
    return run("notebook2script.py", describe, act, argv)


if __name__ == "__main__":
    gc.disable()                                           # a short life: a tenth of the time is saved
    sys.exit(main())
