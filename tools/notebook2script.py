#!/usr/bin/env python
"""Exports the `#export` cells of `nbs/05a_foundations.ipynb` to the module `exp/nb05a.py`, and brings edits back.

Nothing is executed. Every notebook is read, every module built and compiled in memory before the first byte is written.
Each block of a module carries the id and a digest of its cell, so that an edit made there, or in the notebook since, is
noticed and never lost. Notebooks in subfolders, and those whose name begins with no chapter number, are not exported.
"""
import gc
import io
import os
import sys
from typing import cast

from common import Misuse
from exporter import export

TOOL = "notebook2script.py"
FLAGS = "all", "check", "update", "prune", "force"


def cli(*paths, all=False, check=False, update=False, prune=False, force=False, **unknown) -> None:
    """Exports notebooks to modules, nbs/05a_foundations.ipynb to exp/nb05a.py. Exit status: 0 done, 1 faults, 2 misuse.

    Args:
        paths: notebooks; all of the project's where none is named
        all: all notebooks
        check: write nothing; show each module that is not what its notebook says, exit with 1 if there is one
        update: bring edits made in modules back into their notebooks
        prune: remove modules that no notebook makes
        force: overwrite modules that were edited by hand
        unknown: no other flags are known
    """
    flags = dict(all=all, check=check, update=update, prune=prune, force=force, **unknown)
    for name, value in flags.items():
        if name in unknown or not isinstance(value, bool):
            raise Misuse(f"--{name}: no such flag" if name in unknown else f"--{name} takes no value, not {value!r}")
    if check and (update or prune or force):
        raise Misuse("--check writes nothing: leave out the other flags")
    if update and force:
        raise Misuse("--update keeps edits that --force overwrites: leave out one of them")
    if paths and (all or prune):
        raise Misuse("--all and --prune are about all notebooks: name none")
    status = export(*map(str, paths), check=check, update=update, prune=prune, force=force)
    sys.stdout.flush()                                     # so that a broken pipe shows here and not at exit
    sys.exit(status)


def call(argv: list[str]) -> None:
    "Calls `cli` as the command line says. Fire takes a third of a run to load: it is asked only about the uncommon."
    long = {f"-{name[0]}": name for name in FLAGS} | {f"--{name}": name for name in FLAGS}
    if not any(a.startswith("-") and a not in long for a in argv):
        return cli(*[a for a in argv if a not in long], **{long[a]: True for a in argv if a in long})
    if {"-", "--"} & set(argv):                            # to fire these are more than names
        raise Misuse("-: no such notebook")
    import fire
    args = [f"--{long[a]}=True" if a in long else a for a in argv]         # or fire takes a path after it as its value
    fire.Fire(cli, ["--", "--help"] if {"-h", "--help"} & set(argv) else args, name=TOOL)


def main(argv: list[str] | None = None) -> int:
    "Runs the command line, returns the exit status."
    for stream in sys.stdout, sys.stderr:
        if hasattr(stream, "reconfigure"):
            cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")
    try:
        call(sys.argv[1:] if argv is None else argv)
    except SystemExit as e:
        return int(e.code or 0)
    except Misuse as e:
        print(f"{TOOL}: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:                                # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        print(f"{TOOL}: {e.filename or 'output'}: {e.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    gc.disable()                                           # a short life: a tenth of the time is saved
    sys.exit(main())
