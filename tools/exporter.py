"""What the exporter does: it finds the notebooks, plans what changes, brings edits back, and writes all or nothing."""
import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from shutil import copymode
from typing import NamedTuple

from common import Misuse, atomic_write, find_settings, printable, remove_leftovers, short
from exporter_module import Module, build, module_in, sha, taken_apart
from exporter_notebook import Notebook, chapter, load, order, read, spliced

DIFF_LINES = 100                                           # are shown of one difference

_exports = re.compile(rb'"#\s*\|?\s*export\s*(\\[nr]|")', re.I)


@dataclass
class Project:
    "Where the notebooks and the modules are."
    root: Path
    nbs: Path
    lib: Path

    @classmethod
    def find(cls) -> "Project":
        "The project that the working folder is in; raises `Misuse`."
        cfg = find_settings()
        if cfg.root is None:
            raise Misuse("no settings.ini here or in any folder above: run this inside the project")
        nbs, lib = cfg.path("nbs_path", "nbs"), cfg.path("lib_path", "exp")
        for key, folder in ("nbs_path", nbs), ("lib_path", lib):
            if cfg.root not in folder.resolve().parents:
                raise Misuse(f"{folder}: {key} in {cfg.root / 'settings.ini'} should be a folder inside {cfg.root}")
        if not nbs.is_dir():
            raise Misuse(f"{nbs}: no such folder (nbs_path in {cfg.root / 'settings.ini'})")
        return cls(cfg.root, nbs, lib)

    def name(self, path: str | Path) -> str:
        "`path` relative to the project, with forward slashes."
        return Path(os.path.relpath(path, self.root)).as_posix()

    def target(self, nb: Notebook) -> Path:
        return self.lib / f"nb{nb.chapter}.py"

    def all_paths(self) -> list[Path]:
        return sorted(p for p in self.nbs.glob("*.ipynb") if not p.name.startswith("."))

    def named(self, path: str) -> list[Path]:
        "The notebooks that `path` (one of them, or their folder) stands for; raises `Misuse`."
        p = Path(path)
        if not p.exists():
            raise Misuse(f"{path}: no such file or folder")
        if p.is_dir() and p.samefile(self.nbs):
            return self.all_paths()
        if p.is_dir() or p.suffix != ".ipynb" or not p.parent.samefile(self.nbs):
            raise Misuse(f"{path}: only notebooks (.ipynb) that lie in {self.nbs} are exported")
        return [self.nbs / p.name]

    def choose(self, paths: tuple[str, ...]) -> list[Notebook]:
        "The notebooks to export, in order of chapter, those whose name won't do with a fault or warning."
        everything = self.all_paths()
        found = sorted({p for path in paths for p in self.named(path)}) if paths else everything
        notebooks = [Notebook(p, self.name(p), chapter(p)) for p in found]
        for nb in notebooks:
            twins = [printable(self.name(p)) for p in everything if chapter(p) == nb.chapter and p.name != nb.path.name]
            if not re.fullmatch(r"[\w .,()+-]+", nb.path.stem):
                nb.name = ascii(nb.name)
                nb.fault("a notebook's name should hold only letters, digits, blanks and _ - + . , ( )")
            elif not nb.chapter and paths:
                nb.fault("a notebook's name should begin with its chapter number, as in 05a_foundations.ipynb")
            elif not nb.chapter and nb.path.is_file() and _exports.search(nb.path.read_bytes()):
                nb.warn("not exported: its name begins with no chapter number, as in 05a_foundations.ipynb")
            elif nb.chapter and twins:
                nb.fault(f"two notebooks for one module, {self.name(self.target(nb))}: also {', '.join(twins)}")
        return sorted(notebooks, key=lambda nb: order(nb.chapter))


# -- bringing edits back -----------------------------------------------------------------------------------------------

def bring_back(nb: Notebook, mod: Module, name: str) -> str | None:
    "Puts the edits made in the module `name` into `nb`; the notebook file's new text, `None` if nothing changes."
    if mod.blocks_moved():
        return nb.fault(f"blocks of {name} were added, removed or moved: do that in the notebook, then use --force")
    cells, changes = {c.id: c for c in nb.cells}, {}
    for cell_id, base, code in mod.blocks:
        cell = cells.get(cell_id)
        if sha(code) == base or cell and cell.body == code:
            continue
        if cell and sha(cell.body) == base:
            changes[cell.number] = cell.head + code
            continue
        cause = f"changed in {name} and here too" if cell else f"(id {cell_id}) changed in {name}, but is gone here"
        shown = diff(cell.body if cell else "", code, nb.name, name)
        nb.fault(f"{cause}: settle it in the notebook, then use --force\n{shown}", cell)
    if nb.faults or not changes:
        return None
    text = spliced(nb.text, changes)
    read(nb, text.encode())
    return text


# -- writing -----------------------------------------------------------------------------------------------------------

class Change(NamedTuple):
    "A file to write or, where `new` is `None`, to remove; `old` is what it held when it was read."
    path: Path
    old: bytes | None
    new: bytes | None


def contents(path: Path) -> bytes | None:
    "The bytes of a file, `None` when there is none."
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def diff(old: str | bytes | None, new: str | bytes | None, old_name: str, new_name: str) -> str:
    "A unified difference of two texts, its first `DIFF_LINES` lines."
    from difflib import unified_diff
    texts = [t.decode(errors="replace") if isinstance(t, bytes) else t or "" for t in (old, new)]
    lines = list(unified_diff(*(t.split("\n") for t in texts), old_name, new_name, lineterm=""))
    more = [f"… {len(lines) - DIFF_LINES} more lines"] if len(lines) > DIFF_LINES else []
    return "\n".join(lines[:DIFF_LINES] + more)


def refusal(name: str, old: bytes | None, new: str, update: bool) -> str | None:
    "Why the file `name`, which holds `old`, may not be overwritten with `new`, or `None`."
    mod = module_in(old)
    if old is None or mod and not mod.edited():
        return None
    if update and mod and (not mod.frame_edited() or mod.frame == taken_apart(new).frame):
        return None
    if not mod:
        cause = "was not written by this tool: --update cannot read it, --force overwrites it"
    elif update:
        cause = "was edited outside its blocks, where no cell is: undo that, or --force overwrites it"
    else:
        cause = "was edited by hand: --update brings the edits into the notebook, --force overwrites them"
    return f"{name} {cause}\n{diff(old, new, name, f'{name} as exported')}"


def write_all(changes: list[Change]) -> None:
    """Makes all changes, or none where the disk is full or a file has changed since it was read: raises `OSError`.

    All files are written beside their targets first, then renamed in order; each is whole at every moment.
    """
    staged, done, c = {}, 0, None
    try:
        for c in changes:
            if c.new is not None:
                c.path.parent.mkdir(parents=True, exist_ok=True)
                remove_leftovers(c.path)
                staged[c.path] = c.path.with_name(f".{short(c.path.name)}.{os.getpid()}.new")
                atomic_write(staged[c.path], c.new)
                if c.old is not None:
                    copymode(c.path, staged[c.path])
        for c in changes:
            if contents(c.path) not in (c.old, c.new):
                raise OSError(0, "it changed while this ran")
        for c in changes:
            os.replace(staged[c.path], c.path) if c.path in staged else c.path.unlink(missing_ok=True)
            done += 1
    except OSError as e:
        so_far = f"{done} of {len(changes)} files are new, each whole" if done else "nothing was changed"
        raise OSError(e.errno, f"not written: {e.strerror}; {so_far}", str(c.path)) from None
    finally:
        for path in staged.values():
            path.unlink(missing_ok=True)


# -- the command -------------------------------------------------------------------------------------------------------

def plan(project: Project, nb: Notebook, update: bool, force: bool) -> list[Change]:
    "What exporting `nb` changes: its module and, first, the notebook itself if edits come back. Faults are in `nb`."
    target = project.target(nb)
    name, sources = project.name(target), []
    if target.is_symlink() or target.exists() and not target.is_file():
        nb.fault(f"{name} is a link or a folder: nothing is written there")
    else:
        raw, old = load(nb), contents(target)
    if nb.faults:
        return []
    if update and (mod := module_in(old)) and (text := bring_back(nb, mod, name)):
        if nb.path.is_symlink():
            nb.fault("it is a link: nothing is written through it")
        sources = [Change(nb.path, raw, text.encode())]
    try:
        new = None if nb.faults else build(nb, project.lib.name)
    except RecursionError:
        new = nb.fault("an exported cell is nested too deeply")
    if new is None or new.encode() == old:
        return sources
    if not force and (cause := refusal(name, old, new, update)):
        nb.faults.append(cause)
    return [*sources, Change(target, old, new.encode())]


def orphans(project: Project, notebooks: list[Notebook]) -> list[Change]:
    "The generated modules that no notebook makes (any more), to be removed."
    made = {project.target(nb) for nb in notebooks if nb.cells or nb.faults}
    files = [p for p in sorted(project.lib.glob("nb*.py")) if re.fullmatch("nb[0-9]{2,}[a-z]?", p.stem)]
    return [Change(p, contents(p), None) for p in files
            if p not in made and p.is_file() and not p.is_symlink() and module_in(contents(p))]


def export(*paths: str, check: bool = False, update: bool = False, prune: bool = False, force: bool = False) -> int:
    "Does what the command line says, returns the exit status; raises `Misuse`."
    project = Project.find()
    notebooks = project.choose(paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                    # of the compiler, about code that the linter sees as well
        changes = [c for nb in notebooks if nb.chapter and not nb.faults
                   for c in plan(project, nb, update, force or check)]
    strays = [] if paths else orphans(project, notebooks)
    faults = [f for nb in notebooks for f in nb.faults]
    notes = [w for nb in notebooks for w in dict.fromkeys(nb.warnings)]
    if prune and not force:
        faults += [f"{project.name(c.path)}: no notebook makes it, but it was edited by hand: add --force to remove it"
                   for c in strays if module_in(c.old).edited()]
    elif not prune and not check:
        notes += [f"{project.name(c.path)}: no notebook makes it: --prune removes it" for c in strays]
    for line in [f"warning: {note}" for note in notes] + faults:
        print(line, file=sys.stderr)
    if check:
        return report_stale(project, changes + strays, len(faults))
    if faults:
        print(f"{counted(len(faults), 'fault')}: nothing was written", file=sys.stderr)
        return 1
    modules = sum(bool(nb.cells) for nb in notebooks)
    return carry_out(project, changes + (strays if prune else []), modules)


def carry_out(project: Project, changes: list[Change], modules: int) -> int:
    "Makes the changes and says so; returns the exit status."
    try:
        write_all(changes)
    except OSError as e:
        print(f"{project.name(e.filename)}: {e.strerror}", file=sys.stderr)
        return 1
    for c in changes:
        print(f"{project.name(c.path)} {'removed' if c.new is None else 'written'}")
    print(f"{counted(modules, 'module')}, {counted(len(changes), 'file')} changed")
    return 0


def counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def report_stale(project: Project, changes: list[Change], faults: int) -> int:
    "Prints the difference of every module that is not what its notebook says; returns the exit status."
    for c in changes:
        name, mod = project.name(c.path), module_in(c.old)
        state = ("orphaned: no notebook makes it" if c.new is None else "missing" if c.old is None else
                 "not written by this tool" if not mod else "edited by hand" if mod.edited() else "stale")
        print(f"{name}: {state}\n{diff(c.old, c.new, name, f'{name} as exported')}")
    print(f"{counted(len(changes), 'module')} not as the notebook says (`make export` writes them), "
          f"{counted(faults, 'fault')}" if changes or faults else "every module is as its notebook says")
    return 1 if changes or faults else 0
