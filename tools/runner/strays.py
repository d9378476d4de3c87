"""What a notebook left behind: files made, changed or deleted where it should not, and whether it wrote to its own.

Known from the kernel's audit hook, so that what other notebooks and people do meanwhile is never blamed on this one.
What other programs it started wrote is seen as new names in the notebook's folder and the root.
"""
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

PREFIX = "run_nb-"                                         # of the kernels' folders
WRITES = {"open": 0, "os.mkdir": 0, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0, "os.rename": 1, "os.link": 1,
          "os.symlink": 1}                                 # event -> which of its arguments is the path
STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.forkpty", "os.spawn", "os.startfile"}

# what may be written anywhere: caches and the like. settings.ini's out_path comes on top, with --slow its log_path, too
ALLOWED = {"__pycache__", ".ipynb_checkpoints", ".git", ".venv", ".pytest_cache", ".ruff_cache", ".hypothesis",
           ".mypy_cache", "node_modules"}


class Watch:
    """Records, as an audit hook, each path under `roots` that Python code here or in a forked child opens for writing,
    renames, makes or removes, with what was there before, and the first time another program is started."""

    def __init__(self, log: str, roots: list[str], on_kill: Callable[[int], None]):
        self.fd = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        self.roots, self.on_kill = tuple(os.path.join(r, "") for r in roots), on_kill
        self.seen: set[str] = set()

    def __call__(self, event: str, args: tuple) -> None:
        try:
            if event in WRITES:
                if event == "open" and not (args[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                    return
                self.note(args[WRITES[event]])
                if event == "os.rename":
                    self.note(args[0])
            elif event == "import":
                self.watch_torch()
            elif event in STARTS:
                self.write("", [time.time_ns(), 0, 0])
            elif event == "os.kill" and args[1]:           # signal 0 only asks whether there is such a process
                self.on_kill(args[0])
        except Exception:                                  # never the notebook's problem
            pass

    def note(self, path) -> None:
        "Remember `path` and its state before the first write."
        if isinstance(path, int):
            return
        path = os.path.abspath(os.fsdecode(path))
        if path.startswith(self.roots):
            s = state(path)
            self.write(path, s and [s.st_mtime_ns, s.st_size, s.st_ino])

    def write(self, what: str, *more) -> None:
        "Record a path, that a program was started (\"\"), or what `overhear` has heard, the first time."
        if what not in self.seen:
            self.seen.add(what)
            os.write(self.fd, (json.dumps([what, *more]) + "\n").encode("ascii"))

    def watch_torch(self) -> None:
        "torch.save writes from C++, unseen by audit hooks: wrap its writer once torch has come so far."
        cls = getattr(sys.modules.get("torch.serialization"), "_open_zipfile_writer_file", None)
        if cls and "torch" not in self.seen:
            self.seen.add("torch")
            init = cls.__init__
            cls.__init__ = lambda writer, name, *a, **k: (self.note(name), init(writer, name, *a, **k))[1]


class Strays:
    "What the notebook of a kernel that has just been started will leave in and below `roots`."
    every: list["Strays"] = []                             # of all kernels of this run

    def __init__(self, log: Path, notebook: Path, roots: list[Path], places: list[str]):
        self.log, self.notebook, self.roots, self.places = log, notebook, roots, places
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
            causes.append(f"it leaves files outside {self.places[0]}/: {', '.join(left[:10])}{' …' * (len(left) > 10)}")
        return causes

    def read(self) -> dict[str, Any]:
        "What `Watch` recorded; a row cut short by the kernel's death, or by another hand, is left out."
        for line in text_of(self.log).splitlines():
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
        return bool(parts & {*ALLOWED, *self.places}) or any(p.startswith(PREFIX) for p in parts)


def names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def state(path: str | Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def text_of(path: Path) -> str:
    "A file that a kernel left, or nothing."
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
