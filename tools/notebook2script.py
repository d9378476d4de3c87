#!/usr/bin/env python
"""Exports the `#export` cells of nbs/09_learner.ipynb to the module exp/nb09.py, and so on, and brings edits back.

Nothing is executed. Every notebook is read, every module built and compiled in memory before the first byte is written.
Each block of a module carries the id and a digest of its cell, so that an edit made there, or in the notebook since, is
noticed and never lost. Notebooks in subfolders, and those whose name begins with no chapter number, are not exported.

Exit status 0: done; 1: faults; 2: called wrongly.
"""
import gc
import sys

from command import Parser, run
from common import Misuse
from exporter import export


def act(opts) -> int:
    "Refuses flags that contradict each other, or exports; returns the exit status."
    if opts.check and (opts.update or opts.force):
        raise Misuse("--check writes nothing: leave out the other flags")
    if opts.update and opts.force:
        raise Misuse("--update keeps edits that --force overwrites: leave out one of them")
    return export(**vars(opts))


def main(argv: list[str] | None = None) -> int:
    "Runs the command line, returns the exit status."
    parser = Parser("notebook2script.py", __doc__, "notebooks; all of the project's where none is named")
    parser.flag("check", "write nothing; show each module that is not what its notebook says, exit with 1 if there is")
    parser.flag("update", "bring edits made in modules back into their notebooks")
    parser.flag("force", "overwrite modules that were edited by hand")
    return run(parser, act, argv)


if __name__ == "__main__":
    gc.disable()                                           # a short life: a tenth of the time is saved
    sys.exit(main())
