"""The exporter: it finds the notebooks, plans every change in memory, and then makes all of them or none.

What each of its modules does is in tools/README.md.
"""
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from common import Change, contents, plural, write_all

from . import code, door
from .module import bring_back, diff, module_in, refusal, render
from .notebook import Notebook, read
from .project import Project


def export(paths: Sequence[str], check: bool, update: bool, force: bool) -> int:
    "Does what the command line says, returns the exit status; raises `Misuse`, and `OSError` where it can't write."
    project = Project.find()
    notebooks = project.choose(paths)
    changes = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                    # of the compiler, about code that the linter sees as well
        for nb in notebooks:
            if nb.chapter and not nb.faults:
                changes += plan(project, nb, update, force or check)
    code.forgotten(notebooks)
    faults = [f for nb in notebooks for f in nb.faults]
    notes = [w for nb in notebooks for w in dict.fromkeys(nb.warnings)]
    if not paths:
        for path, text in {} if faults else door.files(project, notebooks).items():
            changes += replace(project, path, text, faults, update, force or check)
    asked = {project.target(nb) for nb in notebooks if nb.chapter}
    strays = [c for c in orphans(project, notebooks) if not paths or c.path in asked]
    if check:
        changes += strays
    else:
        notes += [f"{project.name(c.path)}: no notebook makes it: delete it" for c in strays]
    for line in [f"warning: {note}" for note in notes] + faults:
        print(line, file=sys.stderr)
    if check:
        return report_stale(project, changes, len(faults))
    if faults:
        print(f"{plural(len(faults), 'fault')}: nothing was written", file=sys.stderr)
        return 1
    write_all(changes)
    for c in changes:
        print(f"{project.name(c.path)} written")
    print(f"{plural(sum(bool(nb.cells) for nb in notebooks), 'module')}, {plural(len(changes), 'file')} changed")
    return 0


def plan(project: Project, nb: Notebook, update: bool, force: bool) -> list[Change]:
    "What exporting `nb` changes: its module and, first, the notebook itself if edits come back. Faults are in `nb`."
    target, sources, raw = project.target(nb), [], read(nb)
    try:
        if update and not nb.faults and (mod := module_in(contents(target))):
            edited = bring_back(nb, mod, project.name(target))
            sources = [Change(nb.path, raw, edited)] if edited else []
        if not nb.faults:
            code.check(nb, project.lib.name)
    except RecursionError:
        nb.fault("a cell or some metadata is nested too deeply")
    if nb.faults or not nb.cells:
        return sources
    return sources + replace(project, target, render(nb), nb.faults, update, force)


def replace(project: Project, path: Path, new: str, faults: list[str], update: bool, force: bool) -> list[Change]:
    "The change that makes `path` hold `new`, if it does not; a reason why that may not be is added to `faults`."
    name, old = project.name(path), contents(path)
    if path.is_symlink() or path.exists() and not path.is_file():
        faults.append(f"{name} is a link or a folder: nothing is written there")
    elif new.encode() != old:
        if not force and (cause := refusal(name, old, new, update)):
            faults.append(cause)
        return [Change(path, old, new.encode())]
    return []


def orphans(project: Project, notebooks: list[Notebook]) -> list[Change]:
    "The generated modules that no notebook makes (any more), as if they were removed."
    made = {project.target(nb) for nb in notebooks if nb.cells or nb.faults}
    files = [p for p in sorted(project.lib.glob("nb*.py")) if re.fullmatch("nb[0-9]{2,}[a-z]?", p.stem)]
    return [Change(p, contents(p), b"") for p in files
            if p not in made and not p.is_symlink() and module_in(contents(p))]


def report_stale(project: Project, changes: list[Change], faults: int) -> int:
    "Prints the difference of every file that is not what the notebooks say; returns the exit status."
    for c in changes:
        name, mod = project.name(c.path), module_in(c.old)
        state = ("orphaned: no notebook makes it" if not c.new else "missing" if c.old is None else
                 "not written by this tool" if not mod else "edited by hand" if mod.edited() else "stale")
        print(f"{name}: {state}\n{diff(c.old, c.new, name, f'{name} as exported')}")
    print(f"{plural(len(changes), 'file')} not as the notebooks say (`make export` writes them), "
          f"{plural(faults, 'fault')}" if changes or faults else "every module is as its notebook says")
    return 1 if changes or faults else 0
