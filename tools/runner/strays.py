"""What a notebook left behind: files made, changed or deleted where it should not, and whether it wrote to its own.

Known from the kernel's audit hook, so that what other notebooks and people do meanwhile is never blamed on this one.
What other programs it started wrote is seen as new names in the notebook's folder and the root.
"""
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from runner.process import PREFIX, Kernel

# what may be written anywhere: caches and the like. settings.ini's out_path comes on top
ALLOWED = {"__pycache__", ".ipynb_checkpoints", ".git", ".venv", ".pytest_cache", ".ruff_cache", ".hypothesis",
           ".mypy_cache", "node_modules"}


class Strays:
    "What the notebook of a kernel that has just been started will leave in and below `roots`."
    every: list["Strays"] = []                             # of all kernels of this run

    def __init__(self, kernel: Kernel, notebook: Path, roots: list[Path], out_name: str):
        self.kernel, self.notebook, self.roots, self.out_name = kernel, notebook, roots, out_name
        self.before, self.start = {d: names(d) for d in roots}, time.time_ns()
        self.record: dict[str, Any] = {}                   # path -> what was there; "" -> when a program was started
        self.heard: dict[str, None] = {}                   # what `overhear` wrote
        Strays.every.append(self)

    def causes(self) -> list[str]:
        "What is wrong with what it wrote, if anything; asked before the kernel's folder goes."
        own, found, me = False, {}, os.path.realpath(self.notebook)
        for path, before in ((Path(name), before) for name, before in self.read().items() if name):
            change = self.change(path, before)
            if change and os.path.realpath(path) == me:
                own = True
            elif change and not self.may_write(path):
                found[path] = change
        found = {p: "made by a program it started" for p in self.appeared()} | found
        left = [f"{os.path.relpath(p, self.notebook.parent)} ({found[p]})" for p in sorted(found)
                if not any(q in found for q in p.parents)]
        causes = ["it writes to its own file while it runs; only --save may do that"] if own else []
        if left:
            causes.append(f"it leaves files outside {self.out_name}/: {', '.join(left[:10])}{' …' * (len(left) > 10)}")
        return causes

    def read(self) -> dict[str, Any]:
        "What the audit hook recorded; a row cut short by the kernel's death, or by another hand, is left out."
        for line in self.kernel.read("writes.log").splitlines():
            with suppress(ValueError, RecursionError):
                match json.loads(line):
                    case [str(text)]:
                        self.heard[text] = None
                    case [str(path), None | [int(), int(), int()] as before] if "\0" not in path:
                        self.record.setdefault(path, before)
        return self.record

    def appeared(self) -> list[Path]:
        "New names beside the notebook and in the root since it started a program, if not accounted for by others."
        if not (started := self.record.get("")):
            return []
        new = [folder / name for folder in self.roots for name in names(folder) - self.before[folder]
               if not (name.startswith(".") or name.endswith(".ipynb"))]
        return [p for p in new if not self.may_write(p) and (s := state(p)) and s.st_ctime_ns >= started[0] - 1e9
                and not any(str(p) in other.read() for other in Strays.every if other is not self)]

    def change(self, path: Path, before: list | None) -> str:
        now = state(path)
        if now and before:
            return "changed" if before != [now.st_mtime_ns, now.st_size, now.st_ino] and not path.is_dir() else ""
        # what a program or a socket made while the notebook ran was not deleted by it
        there = before and (before[0] < self.start or path.name in self.before.get(path.parent, ()))
        return "new" if now else "deleted" if there else ""

    def may_write(self, path: Path) -> bool:
        "Is it in a place for such files, or in the folder of a kernel?"
        parts = {p for r in self.roots if path.is_relative_to(r) for p in path.relative_to(r).parts}
        return bool(parts & {*ALLOWED, self.out_name}) or any(p.startswith(PREFIX) for p in parts)


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
