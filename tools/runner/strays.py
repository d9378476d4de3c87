"""What a notebook left behind: files made, changed or deleted where it should not, and whether it wrote to its own.

Known from the kernel's audit hook, so that what other notebooks and people do meanwhile is never blamed on this one.
What other programs it started wrote is seen as new names in the notebook's folder and the root.
"""
import json
import os
import time
from pathlib import Path

from runner.process import PREFIX, Kernel

# what may be written anywhere: caches and the like. settings.ini's out_path comes on top
ALLOWED = {"__pycache__", ".ipynb_checkpoints", ".git", ".venv", ".pytest_cache", ".ruff_cache", ".hypothesis",
           ".mypy_cache", "node_modules"}


class Strays:
    "What the notebook of a kernel that has just been started will leave in and below `roots`."
    every: list["Strays"] = []                             # of all kernels of this run

    def __init__(self, kernel: Kernel, notebook: Path, roots: list[Path], out_name: str):
        self.kernel, self.notebook, self.roots = kernel, notebook, roots
        self.out_name, self.allowed = out_name, ALLOWED | {out_name}
        self.before, self.start = {d: names(d) for d in roots}, time.time_ns()
        self.paths: set[str] = set()                       # what it wrote itself
        Strays.every.append(self)

    def causes(self) -> list[str]:
        "What is wrong with what it wrote, if anything; asked before the kernel's folder goes."
        own, found, me = False, {}, os.path.realpath(self.notebook)
        rows = self.rows()
        for _, name, before in (row for row in rows if row[0] == "path"):
            path = Path(name)
            change = self.change(path, before)
            if change and os.path.realpath(path) == me:
                own = True
            elif change and not self.may_write(path):
                found.setdefault(path, change)
        if started := [row[1] for row in rows if row[0] == "start"]:
            found |= {p: "made by a program it started" for p in self.appeared(min(started)) if p not in found}
        left = [f"{os.path.relpath(p, self.notebook.parent)} ({found[p]})" for p in sorted(found)
                if not any(q in found for q in p.parents)]
        causes = ["it writes to its own file while it runs; only --save may do that"] if own else []
        if left:
            causes.append(f"it leaves files outside {self.out_name}/: {', '.join(left[:10])}{' …' * (len(left) > 10)}")
        return causes

    def rows(self) -> list:
        "What the audit hook recorded; a row cut short by the kernel's death, or by another hand, is left out."
        rows = [row for line in self.kernel.read("writes.log").splitlines() if (row := parsed(line))]
        self.paths |= {row[1] for row in rows if row[0] == "path"}
        return rows

    def appeared(self, since: float) -> list[Path]:
        "New names beside the notebook and in the root since then, but for those that other kernels account for."
        others = [s for s in Strays.every if s is not self]
        for s in others:
            s.rows()
        new = [folder / name for folder in self.roots for name in sorted(names(folder) - self.before[folder])
               if not (name.startswith(".") or name.endswith(".ipynb"))]
        return [p for p in new if not self.may_write(p) and not any(str(p) in s.paths for s in others)
                and (s := state(p)) and s.st_ctime >= since - 1]

    def change(self, path: Path, before: list | None) -> str:
        now = state(path)
        if now and before:
            return "changed" if before != [now.st_mtime_ns, now.st_size, now.st_ino] and not path.is_dir() else ""
        # a file that a program or a socket made while the notebook ran was not deleted by it
        there = before and (before[0] < self.start or path.name in self.before.get(path.parent, ()))
        return "new" if now else "deleted" if there else ""

    def may_write(self, path: Path) -> bool:
        "Is it allowed there, or part of what the runner itself keeps in a temporary folder?"
        parts = {p for r in self.roots if path.is_relative_to(r) for p in path.relative_to(r).parts}
        return bool(self.allowed & parts) or any(p.startswith(PREFIX) for p in parts)


def parsed(line: str) -> list | None:
    "A row of the record, `None` for a line that is none."
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match row:
        case ["start", float()] | ["path", str(), None | [int(), int(), int()]] if "\0" not in str(row[1]):
            return row
    return None


def names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def state(path: Path) -> os.stat_result | None:
    try:
        return path.lstat()
    except OSError:
        return None
