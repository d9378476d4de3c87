#!/usr/bin/env python
"""Exports the `#export` cells of `nbs/05a_foundations.ipynb` to the module `exp/nb05a.py`, and brings edits back.

Nothing is executed. Every notebook is read, every module built and compiled in memory before the first byte is written.
A module carries the digest of each of its blocks, so that an edit made in it, or in the notebook since, is noticed and
never lost. Not exported: notebooks in subfolders, and (with a warning) those whose name has no chapter number.
"""
import ast
import glob
import hashlib
import json
import os
import re
import sys
import time
import warnings
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from shutil import copymode

from common import MARKS, Misuse, atomic_write, cell_mark, find_settings

WIDTH = 120                                                # of a line of the generated `__all__`
DIFF_LINES = 100                                           # of one diff are shown
CRASHES = (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError)   # what the parser makes of odd input


# ---------------------------------------------------------------- what is known

@dataclass
class Cell:
    "An exported cell: its mark line is the last of `head`, its code is `body`; `line` is the body's first."
    number: int
    id: str
    head: str
    body: str

    @property
    def line(self) -> int:
        return self.head.count("\n") + 1


@dataclass
class Notebook:
    "A notebook as read: `name` is its path as written in modules and messages, `text` the file's, `exported` its cells."
    path: Path
    name: str
    raw: bytes = b""
    text: str = ""
    exported: list[Cell] = field(default_factory=list)

    @property
    def chapter(self) -> str:
        return chapter(self.path)


@dataclass
class Module:
    "A generated module taken apart: `frame` is all that is in no block, `blocks` are `(cell id, digest, code)`."
    frame: str
    digest: str
    blocks: list[tuple[str, str, str]]

    @property
    def frame_edited(self) -> bool:
        return self.digest[:8] != sha(self.frame)

    @property
    def blocks_moved(self) -> bool:
        return self.digest[9:] != sha(marks_of(self.blocks))

    @property
    def edited(self) -> bool:
        return self.frame_edited or self.blocks_moved or any(sha(code) != dig for _, dig, code in self.blocks)


@dataclass
class Report:
    "The faults and warnings found so far, in order."
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def fault(self, *where_and_cause: str) -> None:
        self.faults.append(": ".join(where_and_cause))

    def warn(self, *where_and_cause: str) -> None:
        self.warnings.append(": ".join(where_and_cause))


def sha(text: str) -> str:
    "Eight hexadecimal digits that tell `text` from any other."
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def lf(text: str) -> str:
    "`text` with every line end a `\\n`."
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


# ---------------------------------------------------------------- which notebooks

_chapter = re.compile(r"([0-9]{2,}[a-zA-Z]?)(?:_.*)?", re.S)
_plain_name = re.compile(r"[\w .,()+-]+")


def chapter(path: Path) -> str | None:
    "The chapter number a notebook's name begins with: `05a` of `05a_foundations.ipynb`; `None` without one."
    m = _chapter.fullmatch(path.stem)
    return m and m[1].lower()


def order(number: str) -> tuple[int, str]:
    "Sorts chapter numbers: 05 before 05a before 06."
    return int(number.rstrip("abcdefghijklmnopqrstuvwxyz")), number.lstrip("0123456789")


@dataclass
class Project:
    "Where the notebooks and modules are."
    root: Path
    nbs: Path
    lib: Path

    @classmethod
    def find(cls) -> "Project":
        "The project the working folder is in; raises `Misuse`."
        cfg = find_settings()
        if cfg.root is None:
            raise Misuse("no settings.ini here or in any folder above: run this inside the project")
        nbs, lib = cfg.path("nbs_path", "nbs"), cfg.path("lib_path", "exp")
        if not nbs.is_dir():
            raise Misuse(f"the notebooks' folder {nbs} does not exist (nbs_path in {cfg.root / 'settings.ini'})")
        for key, folder in ("nbs_path", nbs), ("lib_path", lib):
            if cfg.root not in folder.resolve().parents:
                raise Misuse(f"{folder}: {key} should be a folder inside {cfg.root}")
        return cls(cfg.root, nbs, lib)

    def name(self, path: Path) -> str:
        "`path` relative to the project, with forward slashes."
        return Path(os.path.relpath(path, self.root)).as_posix()

    def own(self, path: Path) -> Path:
        "`path` with links followed; raises `OSError` when that leads out of the project."
        real = path.resolve()
        if self.root not in real.parents:
            raise OSError(0, "it is a link out of the project: nothing is written through it", path)
        return real

    def target(self, nb: Notebook) -> Path:
        return self.lib / f"nb{nb.chapter}.py"

    def all_notebooks(self) -> list[Path]:
        return sorted(p for p in self.nbs.glob("*.ipynb") if not p.name.startswith("."))

    def named(self, path: str) -> list[Path]:
        "The notebooks that `path` (a notebook, or the notebooks' folder) names; raises `Misuse`."
        p = Path(path)
        if not p.exists():
            raise Misuse(f"{path}: no such file or folder")
        if p.is_dir() and p.samefile(self.nbs):
            return self.all_notebooks()
        if p.is_dir() or p.suffix != ".ipynb" or not p.parent.samefile(self.nbs):
            raise Misuse(f"{path}: only notebooks (.ipynb) in {self.nbs} are exported")
        return [self.nbs / p.name]

    def choose(self, paths: tuple[str, ...], report: Report) -> list[Notebook]:
        "The notebooks to export, in order of chapter. Names that cannot be are faults or warnings."
        found = sorted({p for path in paths for p in self.named(path)}) if paths else self.all_notebooks()
        all_numbers = [chapter(p) for p in self.all_notebooks()]
        res = []
        for p in found:
            nb, num = Notebook(p, self.name(p)), chapter(p)
            if num is None and not paths:
                if re.search(rb'"#\s*\|?\s*export\s*(\\n)?"', p.read_bytes() if p.is_file() else b"", re.I):
                    report.warn(nb.name, "not exported: its name does not begin with a chapter number, as in 05a_name")
            elif num is None:
                report.fault(nb.name, "its name should begin with a chapter number, as in 05a_name.ipynb")
            elif not _plain_name.fullmatch(p.stem):
                report.fault(ascii(nb.name), "its name should hold only letters, digits and _ - + . , ( ) or blanks")
            elif all_numbers.count(num) > 1:
                twins = ", ".join(self.name(q) for q in self.all_notebooks() if chapter(q) == num and q != p)
                report.fault(nb.name, f"two notebooks for one module, {self.name(self.target(nb))}: also {twins}")
            else:
                res.append(nb)
        return sorted(res, key=lambda nb: order(nb.chapter))


# ---------------------------------------------------------------- reading a notebook

def read(nb: Notebook, report: Report) -> bool:
    "Reads the file of `nb` and fills in the rest; false, with faults in `report`, where it is not a sound notebook."
    try:
        if not nb.path.is_file():
            raise OSError(0, "it is not a file")
        raw = nb.path.read_bytes()
    except OSError as e:
        return report.fault(nb.name, f"cannot be read: {e.strerror}") or False
    return parse(nb, raw, report)


def parse(nb: Notebook, raw: bytes, report: Report) -> bool:
    "`read`, of bytes in memory."
    try:
        nb.raw, nb.text = raw, raw.decode()
    except UnicodeDecodeError as e:
        return report.fault(nb.name, f"not a notebook: byte {e.start} is not UTF-8 text") or False
    try:
        data = json.loads(nb.text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as e:
        return report.fault(nb.name, why_not_json(nb.text, e)) or False
    if cause := why_not_notebook(data):
        return report.fault(nb.name, cause) or False
    n = len(report.faults)
    check_ids(nb, data["cells"], report)
    nb.exported = list(exported_cells(nb, data["cells"], report))
    return len(report.faults) == n


def why_not_json(text: str, e: Exception) -> str:
    "What is wrong with a file that does not parse as JSON."
    if not text.removeprefix("\ufeff").strip():
        return "not a notebook: the file is empty"
    if m := re.search(r"^(<{7} |>{7} |={7}$)", text, re.M):
        return f"line {text.count(chr(10), 0, m.start()) + 1}: merge-conflict markers: resolve the merge first"
    if isinstance(e, json.JSONDecodeError):
        cut = " (cut short?)" if e.pos >= len(text.rstrip()) - 1 or "Unterminated" in e.msg else ""
        return f"line {e.lineno}: not a notebook: broken JSON: {e.msg}{cut}"
    return f"not a notebook: {str(e) or type(e).__name__}"


def why_not_notebook(data: object) -> str | None:
    "What keeps parsed JSON from being a notebook in format 4, or `None`."
    version = data.get("nbformat") if isinstance(data, dict) else None
    if version == 3 or isinstance(data, dict) and "worksheets" in data:
        return "notebook format 3 is too old: `jupyter nbconvert --to notebook --nbformat 4 --inplace FILE` brings it up"
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list):
        return "not a notebook: JSON without a list of cells"
    if version != 4:
        return f"notebook format {json.dumps(version)[:20]} is not known here: 4 is"
    for i, c in enumerate(data["cells"], 1):
        src = c.get("source") if isinstance(c, dict) else None
        sound = isinstance(src, str) or isinstance(src, list) and all(isinstance(s, str) for s in src)
        if not sound or c.get("cell_type") not in ("code", "markdown", "raw"):
            return f"cell {i}: not a notebook cell{explain(data)}"
    return None


def explain(data: dict) -> str:
    "What nbformat's validator says about a notebook that is not one."
    try:
        import nbformat
        nbformat.validate(data, relax_add_props=True)
    except ImportError:
        pass
    except Exception as e:                                 # jsonschema's errors, and its own on odd input
        return ": " + (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
    return ""


def check_ids(nb: Notebook, cells: list[dict], report: Report) -> None:
    "Each cell needs an id of its own: edits in a module find their way back by it."
    seen, lacking = {}, []
    for i, c in enumerate(cells, 1):
        id = c.get("id")
        if not isinstance(id, str) or not re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", id):
            lacking.append(i)
        elif seen.setdefault(id, i) != i:
            report.fault(nb.name, f"cell {i} (id {id})",
                         f"duplicate cell id, also of cell {seen[id]}: `make clean-nbs` mends it")
    if lacking:
        more = f", and {len(lacking) - 1} more," if len(lacking) > 1 else ""
        report.fault(nb.name, f"cell {lacking[0]}", f"this cell{more} without a valid cell id: `make clean-nbs` adds them")


def exported_cells(nb: Notebook, cells: list[dict], report: Report) -> Iterator[Cell]:
    "The exported cells of a notebook that hold code; what looks amiss in any cell is reported."
    for i, c in enumerate(cells, 1):
        src = lf(c["source"] if isinstance(c["source"], str) else "".join(c["source"]))
        where = f"cell {i} (id {c.get('id')})"
        if conflict := conflict_line(c["cell_type"], src):
            report.fault(nb.name, f"{where}, line {conflict}", "merge-conflict markers: resolve the merge first")
            continue
        parts = split_mark(src) if c["cell_type"] == "code" else None
        if miss := near_miss(c["cell_type"], src, parts):
            report.warn(nb.name, where, miss)
        if parts and not parts[1].strip():
            report.warn(nb.name, where, "marked #export, but empty")
        elif parts:
            yield Cell(i, str(c.get("id")), *parts)


def conflict_line(cell_type: str, src: str) -> int | None:
    "The line of a cell with a merge-conflict marker: git's in code that does not parse, or a cell that nbdev made."
    if "<<<<<<<" not in src and ">>>>>>>" not in src:
        return None
    if cell_type != "code":
        return 1 if re.fullmatch(r"`?(<{7}|>{7})( [^\n]*)?`?", src.strip()) else None
    m = re.search(r"^(<{7}|>{7})( |$)", src, re.M)
    return src.count("\n", 0, m.start()) + 1 if m and syntax_error(src) else None


# ---------------------------------------------------------------- marks

_first_line = re.compile(r"(?:[^\S\n]*\n)*([^\n]*)\n?")
_any_mark = re.compile(rf"^[^\S\n]*#[^\S\n]*\|?[^\S\n]*({'|'.join(MARKS)})[^\S\n]*$", re.I | re.M)
_like_export = re.compile(r"\s*#(?:\|?export\b.*|[\s|]*export\W+\S+\s*|[\s#|!%:]*(\w+)\W*)$", re.I)


def split_mark(src: str) -> tuple[str, str] | None:
    "An exported cell's source up to and including its mark line, and the rest; `None` for any other cell."
    m = _first_line.match(src)
    if cell_mark(m[1]) != "export" or len(m[1].splitlines()) > 1:
        return None
    return src[:m.end()], src[m.end():]


def near_miss(cell_type: str, src: str, parts: tuple[str, str] | None) -> str | None:
    "What somebody may have meant as a mark that is none, or `None`."
    if cell_type != "code":
        return "#export in a cell that is not code" if re.match(r"\s*#\|?export\s*$", src, re.I | re.M) else None
    first = _first_line.match(src)
    for m in _any_mark.finditer(src, first.end()):
        line = src.count("\n", 0, m.start()) + 1
        if is_comment(src, line):
            return f"line {line}: the mark #{m[1].lower()} counts only on the first line, and one a cell"
    m = None if parts or cell_mark(first[1]) else _like_export.match(first[1])
    if m and (m[1] is None or close_to_export(m[1].lower())):
        return f"{first[1].strip()[:60]!r} is not a mark: did you mean #export?"
    return None


def close_to_export(word: str) -> bool:
    from difflib import SequenceMatcher
    return SequenceMatcher(None, word, "export").ratio() >= 0.75


def is_comment(src: str, line: int) -> bool:
    "Is that line of `src` a comment, and not part of a string?"
    import tokenize
    lines = iter(src.splitlines(keepends=True))
    try:
        return any(t.type == tokenize.COMMENT and t.start[0] == line
                   for t in tokenize.generate_tokens(lambda: next(lines, "")))
    except (tokenize.TokenError, SyntaxError):
        return True


# ---------------------------------------------------------------- building a module

SEP = "\n\n\n"                                             # what stands between blocks


def block_marker(name: str, cell_id: str, code: str) -> str:
    return f"# %% {name} #{cell_id} ({sha(code)})\n"


def build(nb: Notebook, pkg: str, report: Report) -> str | None:
    "The text of the module of `nb`; `None` when it has none, or faults (in `report`)."
    if not nb.exported:
        return None
    n = len(report.faults)
    for c in nb.exported:
        if m := re.search(rf"^# %% {re.escape(nb.name)} ", c.body, re.M):
            report.fault(nb.name, place(c, c.body.count("\n", 0, m.start()) + 1), "this line is the exporter's own marker")
    code = SEP.join(block_marker(nb.name, c.id, c.body) + c.body for c in nb.exported) + "\n"
    tree = compiled(nb, code, report)
    if tree is None or len(report.faults) > n:
        return None
    finder = Finder(nb)
    check_imports(tree, nb, pkg, finder, report)
    names = public_names(tree, nb, finder, report)
    return render(nb, code, names, future=is_future(tree.body[0]) if tree.body else False) if len(report.faults) == n else None


def place(cell: Cell, body_line: int) -> str:
    "Where a line of a cell's code is, in words."
    return f"cell {cell.number} (id {cell.id}), line {cell.line + body_line - 1}"


class Finder:
    "Says which cell a line of a module's joined blocks is from."
    def __init__(self, nb: Notebook):
        self.cells, self.starts, line = nb.exported, [], 2
        for c in nb.exported:
            self.starts.append(line)
            line += c.body.count("\n") + 1 + SEP.count("\n")

    def cell(self, line: int) -> Cell:
        return self.cells[bisect_right(self.starts, line) - 1]

    def __call__(self, line: int) -> str:
        i = bisect_right(self.starts, line) - 1
        return place(self.cells[i], line - self.starts[i] + 1)


def compiled(nb: Notebook, code: str, report: Report) -> ast.Module | None:
    "The syntax tree of a module's blocks, once it has compiled; else `None` and each cell's fault in `report`."
    finder = Finder(nb)
    try:
        tree = ast.parse(code)
        if not any(finder.cell(first_line(s)) is not finder.cell(s.end_lineno) for s in tree.body):
            late_futures = [s for s in tree.body if is_future(s)][future_prefix(tree.body):]
            for s in late_futures:
                report.fault(nb.name, finder(s.lineno), "`from __future__` must be the first statement of the first exported cell")
            if not late_futures:
                compile(tree, nb.name, "exec", dont_inherit=True)
            return None if late_futures else tree
    except CRASHES as e:
        error = e
    else:
        error = SyntaxError("a statement runs on into the next exported cell")
    n = len(report.faults)
    for cell in nb.exported:
        if found := cell_error(cell):
            report.fault(nb.name, place(cell, found[0]), found[1])
    if len(report.faults) == n:                            # each cell is sound, together they are not
        report.fault(nb.name, finder(getattr(error, "lineno", None) or 2), f"syntax error: {getattr(error, 'msg', error)}")
    return None


def first_line(stmt: ast.stmt) -> int:
    return min([stmt.lineno, *(d.lineno for d in getattr(stmt, "decorator_list", []))])


def is_future(stmt: ast.stmt) -> bool:
    return isinstance(stmt, ast.ImportFrom) and stmt.module == "__future__" and not stmt.level


def future_prefix(body: list[ast.stmt]) -> int:
    "How many statements at the start are `from __future__` imports."
    return next((i for i, s in enumerate(body) if not is_future(s)), len(body))


def cell_error(cell: Cell) -> tuple[int, str] | None:
    "The line and cause of the first syntax error in a cell by itself, or `None`."
    try:
        compile(cell.body, "cell", "exec", dont_inherit=True)
        return None
    except CRASHES as e:
        lines = cell.body.split("\n")
        line = min(max(getattr(e, "lineno", None) or 1, 1), len(lines))
        msg = getattr(e, "msg", None) or str(e) or type(e).__name__
    start = next(i for i, text in enumerate(lines, 1) if text.strip())
    if lines[start - 1].lstrip().startswith("%%"):
        line = start
    text = lines[line - 1].strip()
    if re.match(r"[%!?]|[\w.,\s]+=\s*[%!]|[\w.]+\?{1,2}$", text):
        kind = "a shell command" if "!" in text[:1] or re.match(r"[^!]*=\s*!", text) else "a help request" if "?" in text else "IPython magic"
        return line, f"{kind} in an exported cell: {text[:60]!r}: a module is plain Python"
    try:
        compile(cell.body, "cell", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        return line, "top-level await in an exported cell: put it in an `async def`"
    except CRASHES:
        return line, f"syntax error: {msg}"


def check_imports(tree: ast.Module, nb: Notebook, pkg: str, finder: Finder, report: Report) -> None:
    "A chapter imports only chapters before it."
    for node in ast.walk(tree):
        for mod in sorted(imported(node, pkg)):
            m = re.fullmatch(r"nb([0-9]{2,}[a-z]?)", mod)
            if m and order(m[1]) >= order(nb.chapter):
                what = "itself" if m[1] == nb.chapter else "of a later chapter"
                report.fault(nb.name, finder(node.lineno), f"import {what}: {pkg}.{mod} in chapter {nb.chapter}")


def imported(node: ast.AST, pkg: str) -> set[str]:
    "The modules of package `pkg` that an import statement names."
    if isinstance(node, ast.Import):
        full = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom) and node.level < 2:
        base = ".".join(filter(None, [pkg if node.level else "", node.module]))
        full = [base, *(f"{base}.{a.name}" for a in node.names)]
    else:
        return set()
    return {p[1] for p in (name.split(".") for name in full) if len(p) > 1 and p[0] == pkg}


# ---------------------------------------------------------------- names

DEFS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef


def public_names(tree: ast.Module, nb: Notebook, finder: Finder, report: Report) -> list[str]:
    "What `__all__` holds, in order; a name defined twice, or an `__all__` of the author's, is a fault."
    names, first = {}, {}
    for name, stmt, always in bindings(tree.body):
        if isinstance(stmt, ast.Delete):
            names.pop(name, None)
            first.pop(name, None)
            continue
        if name == "__all__":
            report.fault(nb.name, finder(stmt.lineno), "`__all__` is computed: leave it out")
        if always and name in first and name != "_" and name not in read_by(stmt):
            report.fault(nb.name, finder(stmt.lineno), f"`{name}` is defined twice: first in {finder(first[name])}")
        if always:
            first[name] = stmt.lineno
        if not name.startswith("_"):
            names[name] = None
    return list(names)


def bindings(body: list[ast.stmt], always: bool = True) -> Iterator[tuple[str, ast.stmt, bool]]:
    """Each name that a definition, class or assignment binds (or `del` unbinds), its statement, and whether it always runs.

    Goes into `if`, `try` and `with`. A `@patch`ed function binds no name; an `@overload` is followed by the one that does.
    """
    for s in body:
        if isinstance(s, DEFS):
            marks = {n for d in s.decorator_list for n in last_name(d)}
            if not marks & {"patch", "patch_to", "patch_property"}:
                yield s.name, s, always and "overload" not in marks
        elif isinstance(s, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Delete)):
            if getattr(s, "value", True):                  # `x: int` alone binds nothing
                for t in getattr(s, "targets", None) or [s.target]:
                    for n in ast.walk(t):
                        if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load):
                            yield n.id, s, always
        elif isinstance(s, ast.If) and "__name__" in names_in(s.test):
            continue                                       # `if __name__ == "__main__":` does not run on import
        elif isinstance(s, (ast.If, ast.Try, ast.With, getattr(ast, "TryStar", ast.Try))):
            for part in [s.body, *(h.body for h in getattr(s, "handlers", [])), getattr(s, "orelse", []), getattr(s, "finalbody", [])]:
                yield from bindings(part, always and isinstance(s, ast.With))
        elif type(s).__name__ == "TypeAlias":
            yield s.name.id, s, always


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def last_name(decorator: ast.expr) -> list[str]:
    "`patch` of `@patch`, `@core.patch` and `@patch(x)`."
    d = decorator.func if isinstance(decorator, ast.Call) else decorator
    return [d.attr] if isinstance(d, ast.Attribute) else [d.id] if isinstance(d, ast.Name) else []


def read_by(stmt: ast.stmt) -> set[str]:
    "The names a statement reads as it binds: a class may extend, a decorator or a value use, what it replaces."
    if isinstance(stmt, DEFS):
        parts = [*stmt.decorator_list, *getattr(stmt, "bases", [])]
    else:
        parts = [stmt.target] if isinstance(stmt, ast.AugAssign) else []
        parts += [stmt.value] if getattr(stmt, "value", None) else []
    return {name for p in parts for name in names_in(p)}


# ---------------------------------------------------------------- a module's text, made and taken apart

_origin = re.compile(r"^# Generated by tools/notebook2script\.py from (.+?\.ipynb)\. Do not edit", re.M)
_digest = re.compile(r"(?<=Digest )([0-9a-f]{8}-[0-9a-f]{8})(?=\.$)", re.M)


def render(nb: Notebook, code: str, names: list[str], future: bool) -> str:
    "The module: what it is, `__all__` (at the end if a `from __future__` must come first), and the blocks."
    title = " ".join([f"Chapter {nb.chapter}", *nb.path.stem.split("_")[1:]])
    head = (f'"""{title}: the code. Its story and its tests are the notebook."""\n'
            f"# Generated by tools/notebook2script.py from {nb.name}. Do not edit: change the notebook and export it, or\n"
            f"# bring changes made here into the notebook with `notebook2script.py --update`. Digest 00000000-00000000.\n")
    all_ = wrapped(names)
    text = f"{head}{SEP[1:]}{code}{SEP[1:]}# %% {nb.name} end\n{all_}" if future else f"{head}\n{all_}{SEP[1:]}{code}"
    mod = taken_apart(text)
    return _digest.sub(f"{sha(mod.frame)}-{sha(marks_of(mod.blocks))}", text, count=1)


def wrapped(names: list[str]) -> str:
    "The `__all__` statement, its lines no longer than `WIDTH`."
    line, lines = "__all__ = [", []
    for i, name in enumerate(names):
        item = f'"{name}"' + (", " if i < len(names) - 1 else "]")
        if len(line) + len(item.rstrip()) > WIDTH:
            lines.append(line.rstrip())
            line = " " * len("__all__ = [")
        line += item
    return "\n".join([*lines, line if names else line + "]"]) + "\n"


def taken_apart(text: str) -> Module | None:
    "A generated module's parts; `None` when this tool did not write the file."
    origin, digest = _origin.search(text[:1000]), _digest.search(text[:1000])
    if not origin or not digest:
        return None
    parts = re.split(rf"^# %% {re.escape(origin[1])} (?:#([\w-]+) \(([0-9a-f]{{8}})\)|end)\n", text, flags=re.M)
    frame, blocks = _digest.sub("", parts[0], count=1), []
    for i in range(1, len(parts), 3):
        cell_id, dig, code = parts[i:i + 3]
        if cell_id is None:
            frame += code
            continue
        for _ in range(1 if i + 3 >= len(parts) else len(SEP)):
            code = code.removesuffix("\n")
        blocks.append((cell_id, dig, code))
    return Module(frame, digest[1], blocks)


def marks_of(blocks: list[tuple[str, str, str]]) -> str:
    return "\n".join(f"{cell_id} {dig}" for cell_id, dig, _ in blocks)


# ---------------------------------------------------------------- bringing edits back

def bring_back(nb: Notebook, target: Path, report: Report) -> bytes | None:
    "Puts the edits made in the module `target` into `nb`; the notebook file's new bytes, `None` if nothing changes."
    mod = module_in(contents(target))
    if not mod or not mod.edited:
        return None
    name = f"{target.parent.name}/{target.name}"
    if mod.blocks_moved:
        report.fault(name, f"blocks were added, removed or moved: do that in {nb.name}, then export with --force")
        return None
    cells, changes = {c.id: c for c in nb.exported}, {}
    for cell_id, base, code in mod.blocks:
        cell = cells.get(cell_id)
        if sha(code) == base or cell and cell.body == code:
            continue
        if cell and sha(cell.body) == base:
            changes[cell.number] = cell.head + code
        else:
            where = f"cell {cell.number} (id {cell_id})" if cell else f"(id {cell_id})"
            cause = "changed in the module and in the notebook too" if cell else "changed in the module, but no longer exported"
            shown = diff(cell.body if cell else "", code, f"{nb.name} {where}", name)
            report.fault(nb.name, where, f"{cause}: settle it by hand in the notebook, then export with --force\n{shown}")
    if not changes or report.faults:
        return None
    raw, text = nb.raw, spliced(nb.text, changes)
    if not parse(nb, text.encode(), report) or raw == nb.raw:
        return None
    return nb.raw


_blank = re.compile(r"[ \t\r\n]*")
_json = json.JSONDecoder()


def values(text: str, i: int) -> Iterator[tuple[str | None, int, int]]:
    "The key (`None` in an array), start and end of each value of the JSON object or array at `text[i]`."
    is_object = text[i] == "{"
    i = _blank.match(text, i + 1).end()
    while text[i] not in "]}":
        key = None
        if is_object:
            key, i = _json.raw_decode(text, i)
            i = _blank.match(text, _blank.match(text, i).end() + 1).end()
        _, end = _json.raw_decode(text, i)
        yield key, i, end
        i = _blank.match(text, end).end()
        i = _blank.match(text, i + 1).end() if text[i] == "," else i


def spliced(text: str, changes: dict[int, str]) -> str:
    "The notebook `text` with new sources for some cells (by number) and every other character as it was."
    to_ascii = text.isascii() and re.search(r"\\u(?!00[01])[0-9a-fA-F]{4}", text) is not None
    top = _blank.match(text, 1 if text.startswith("\ufeff") else 0).end()
    cells = {key: start for key, start, _ in values(text, top)}["cells"]
    starts = [start for _, start, _ in values(text, cells)]
    for number in sorted(changes, reverse=True):
        start, end = {key: (a, b) for key, a, b in values(text, starts[number - 1])}["source"]
        text = text[:start] + source_json(text[start:end], changes[number], to_ascii) + text[end:]
    return text


def source_json(old: str, new: str, to_ascii: bool) -> str:
    "The source `new` as JSON, laid out as the JSON `old` of the source it replaces."
    src = json.loads(old)
    if "\r\n" in "".join(src):
        new = new.replace("\n", "\r\n")
    if isinstance(src, str):
        return json.dumps(new, ensure_ascii=to_ascii)
    spans = [(a, b) for _, a, b in values(old, 0)]
    before, after = old[1:spans[0][0]], old[spans[-1][1]:]
    between = old[spans[0][1]:spans[1][0]] if len(spans) > 1 else "," + (before or " ")
    lines = re.findall(r"[^\n]*\n|[^\n]+", new)
    return "[" + before + between.join(json.dumps(line, ensure_ascii=to_ascii) for line in lines) + after


# ---------------------------------------------------------------- writing

@dataclass
class Change:
    "A file to write, or (`new` is `None`) to remove; `old` is what it held when it was read."
    path: Path
    old: bytes | None
    new: bytes | None


def contents(path: Path) -> bytes | None:
    "The bytes of a file, `None` when there is none."
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def diff(old: str, new: str, old_name: str, new_name: str) -> str:
    "A unified diff, its first `DIFF_LINES` lines."
    from difflib import unified_diff
    lines = list(unified_diff(old.splitlines(), new.splitlines(), old_name, new_name, lineterm=""))
    more = [f"… and {len(lines) - DIFF_LINES} more lines"] if len(lines) > DIFF_LINES else []
    return "\n".join(lines[:DIFF_LINES] + more) or "(only blank lines at the end, or line ends, differ)"


def module_in(raw: bytes | None) -> Module | None:
    "The generated module a file holds; `None` when this tool did not write it."
    try:
        return raw and taken_apart(lf(raw.decode("utf-8-sig")))
    except UnicodeDecodeError:
        return None


def refusal(name: str, old: bytes | None, new: str, update: bool) -> str | None:
    "Why the module `name` with the contents `old` may not be overwritten with `new`, or `None`."
    mod = module_in(old)
    if old is None or mod and (not mod.edited or update and (not mod.frame_edited or mod.frame == taken_apart(new).frame)):
        return None
    if not mod:
        cause = "was not written by this tool, so --update cannot read it; --force overwrites it"
    elif update:
        cause = "was edited outside its blocks, where no cell is: undo that, or --force overwrites it"
    else:
        cause = "was edited by hand: --update brings the edits into the notebook, --force overwrites them"
    return f"{cause}\n{diff(old.decode(errors='replace'), new, name, f'{name} as exported')}"


def write_all(changes: list[Change]) -> None:
    """Makes all changes, or none where the disk is full or a file has changed since it was read: raises `OSError`.

    All files are written beside their targets first, then renamed in order, each whole at every moment.
    """
    staged, done, c = {}, 0, None
    try:
        for c in changes:
            if c.new is not None:
                c.path.parent.mkdir(exist_ok=True)
                sweep(c.path)
                staged[c.path] = c.path.with_name(f".{c.path.name}.{os.getpid()}.new")
                atomic_write(staged[c.path], c.new)
                if c.old is not None:
                    copymode(c.path, staged[c.path])
        for c in changes:
            if contents(c.path) not in (c.old, c.new):
                raise OSError(0, "it changed while this ran")
        for done, c in enumerate(changes):
            os.replace(staged[c.path], c.path) if c.path in staged else c.path.unlink(missing_ok=True)
    except OSError as e:
        so_far = f"{done} of {len(changes)} files are new, each whole" if done else "nothing was changed"
        raise OSError(e.errno, f"cannot be written: {e.strerror}; {so_far}", c.path) from None
    finally:
        for tmp in staged.values():
            tmp.unlink(missing_ok=True)


def sweep(path: Path) -> None:
    "Removes what an exporter killed while writing `path` left behind, ten minutes ago or more."
    for f in path.parent.glob(f".*{glob.escape(path.name)}.*"):
        if f.suffix in (".new", ".tmp") and f.stat().st_mtime < time.time() - 600:
            f.unlink(missing_ok=True)


# ---------------------------------------------------------------- the command

def plan(project: Project, notebooks: list[Notebook], report: Report, update: bool, force: bool) -> list[Change]:
    "What exporting `notebooks` (or, without protection, checking them) would change; edited notebooks come first."
    sources, modules = [], []
    for nb in notebooks:
        target = project.target(nb)
        name = project.name(target)
        if target.is_symlink() or target.exists() and not target.is_file():
            report.fault(name, "it is a link or a folder: nothing is written through it, move it away")
        elif read(nb, report):
            before = nb.raw
            if update and bring_back(nb, target, report):
                sources.append(Change(project.own(nb.path), before, nb.raw))
            text, old = build(nb, project.lib.name, report), contents(target)
            if text is None or text.encode() == old:
                continue
            if not force and (why := refusal(name, old, text, update)):
                report.fault(name, why)
            modules.append(Change(target, old, text.encode()))
    return sources + modules


def orphans(project: Project, notebooks: list[Notebook], force: bool, report: Report) -> list[Change]:
    "The generated modules that no notebook makes (any more), to be removed; hand-edited ones only with `force`."
    made = {project.target(nb) for nb in notebooks if nb.exported}
    res = []
    for path in sorted(project.lib.glob("nb*.py")):
        mod = None if path in made or path.is_symlink() or not path.is_file() else module_in(contents(path))
        if mod and mod.edited and not force:
            report.fault(project.name(path), "no notebook makes it, and it was edited by hand: --prune --force removes it")
        elif mod:
            res.append(Change(path, contents(path), None))
    return res


def export(*paths: str, check: bool = False, update: bool = False, prune: bool = False, force: bool = False) -> int:
    "Does what the command line says; returns the exit status."
    project, report = Project.find(), Report()
    notebooks = project.choose(paths, report)
    changes = plan(project, notebooks, report, update, force or check)
    strays = [] if paths or report.faults else orphans(project, notebooks, force or check, report)
    for line in report.warnings:
        print(f"warning: {line}", file=sys.stderr)
    for line in report.faults:
        print(line, file=sys.stderr)
    if check:
        return say_stale(project, changes + strays, len(notebooks), report)
    if report.faults:
        print(f"{plural(len(report.faults), 'fault')}; nothing was written", file=sys.stderr)
        return 1
    if not prune:
        for c in strays:
            print(f"warning: {project.name(c.path)}: no notebook makes it: --prune removes it", file=sys.stderr)
    changes += strays if prune else []
    write_all(changes)
    for c in changes:
        print(f"{project.name(c.path)} {'removed' if c.new is None else 'written'}")
    modules = sum(bool(nb.exported) for nb in notebooks)
    print(f"{plural(modules, 'module')}, {len(changes)} files changed")
    return 0


def plural(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def say_stale(project: Project, changes: list[Change], n: int, report: Report) -> int:
    "Prints the difference of every module that is not what its notebook says; returns the exit status."
    for c in changes:
        name = project.name(c.path)
        mod = module_in(c.old)
        state = ("orphaned: no notebook makes it" if c.new is None else "missing" if c.old is None else
                 "not written by this tool" if not mod else "edited by hand" if mod.edited else "stale: its notebook has changed")
        print(f"{name}: {state}")
        print(diff((c.old or b"").decode(errors="replace"), (c.new or b"").decode(), name, f"{name} as exported"))
    bad = len(changes) + len(report.faults)
    print(f"{plural(n, 'notebook')} checked: " + (f"{plural(len(changes), 'module')} not as exported, {plural(len(report.faults), 'fault')}"
                                                 if bad else "all modules as exported"))
    return 1 if bad else 0


FLAGS = "all", "check", "update", "prune", "force"


def cli(*paths, **flags) -> None:
    """Exports notebooks to modules: nbs/05a_foundations.ipynb to exp/nb05a.py.

    Args:
        paths: notebooks; none means all of the project's.
        flags: --all all notebooks (also without it, where no path is named); --check write nothing, show every module that is
            not as its notebook says, exit 1 if there is any; --update bring edits made in modules back into their
            notebooks; --prune remove modules that no notebook makes; --force overwrite modules edited by hand.
    """
    given = {name for name, val in flags.items() if val == "True"}
    for name, val in flags.items():
        if name not in FLAGS or val not in ("True", "False"):
            raise Misuse(f"--{name}={val}" if name in FLAGS else f"--{name}: no such flag; there are --" + ", --".join(FLAGS))
    if "all" in given and paths:
        raise Misuse("--all and paths: one or the other")
    if "check" in given and given & {"update", "prune", "force"}:
        raise Misuse("--check writes nothing: it goes with no other flag")
    if {"update", "force"} <= given:
        raise Misuse("--update keeps the modules' edits, --force drops them: one or the other")
    if "prune" in given and paths:
        raise Misuse("--prune looks at all modules: name no paths")
    sys.exit(export(*paths, **{name: True for name in given - {"all"}}))


def main(argv: list[str] | None = None) -> int:
    "Runs the command line; returns the exit status: 0 done, 1 faults or stale modules, 2 misuse."
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    try:
        import fire
        from fire.decorators import SetParseFn
        args = [f"{a}=True" if a.removeprefix("--") in FLAGS and a.startswith("--") else a for a in argv]
        if "-" in args:
            raise Misuse("'-' is not a path")
        fire.Fire(SetParseFn(str)(cli), command=args, name="notebook2script.py")
    except SystemExit as e:
        return e.code or 0
    except Misuse as e:
        print(f"notebook2script: {e}", file=sys.stderr)
        return 2
    except OSError as e:
        print(f"{e.filename}: {e.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
