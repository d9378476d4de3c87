"""A notebook as the exporter sees it: its file read as JSON and checked, its exported cells found."""
import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from common import BLANK_LINES, MARK, MARK_LINE, BadFile, parse, read_file

UNPARSABLE = SyntaxError, ValueError, RecursionError, MemoryError, OverflowError    # what Python raises on odd source

_conflict = re.compile(r"^`?(<{7}|>{7})( |`?$)", re.M)     # of git, or in a cell that nbdev made of one
_id = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_first_line = re.compile(rf"{BLANK_LINES}([^\n]*)\n?")
_mark_line = re.compile(MARK_LINE, re.I | re.M)
_like_a_mark = re.compile(r"""
    \s*\# (?: \s*\|[\s|]* )? (?: (slow|cuda)\b | export )                   # `#| export and show`, `#slow, an hour`
    | \s*\#[\s\#!%:]+ (?: (slow|cuda) | export )\b (?! (?: \s+[\w'-]+[,.]? ){3} )         # no sentence: `# export it`
    | \s*\#[\s\#!%:]* (?=\w*e)(?=\w*x)(?=\w*p)(?=\w*t) \w+\W*$            # `#exprot`
    """, re.I | re.X)


class Cell:
    "A cell: `head` ends with the mark line of an exported one, `body` is its code, `tree` that code parsed."
    def __init__(self, number: int, id: str, head: str, body: str):
        self.number, self.id, self.head, self.body = number, id, head, body
        self.tree = ast.Module([], [])


class Use(NamedTuple):
    "An import of a `name` (or of none, the module) of another `chapter`, and where."
    chapter: str
    name: str
    cell: Cell
    line: int


class Notebook:
    "A notebook: its `name` in messages and modules, what its file holds, what it exports, and what is wrong with it."
    def __init__(self, path: Path, name: str, chapter: str):
        self.path, self.name, self.chapter = path, name, chapter
        self.data: dict = {}
        self.cells: list[Cell] = []
        self.bound: dict[str, str] = {}                    # name -> how its exported cells bind it (see code.py)
        self.uses: list[Use] = []
        self.faults: list[str] = []
        self.warnings: list[str] = []

    @property
    def names(self) -> list[str]:
        "What it exports, in order of definition."
        return [name for name, how in self.bound.items() if how == "own" and not name.startswith("_")]

    @property
    def title(self) -> str:
        "As in `05a, foundations`."
        return ", ".join(filter(None, [self.chapter, " ".join(self.path.stem.split("_")[1:])]))

    def fault(self, cause: str, cell: Cell | None = None, line: int = 1) -> None:
        "Notes a fault of the notebook, or of a line of the code of one cell, which the message counts from its top."
        self.faults.append(self.at(cause, cell, line))

    def warn(self, cause: str, cell: Cell | None = None, line: int = 1) -> None:
        self.warnings.append(self.at(cause, cell, line))

    def at(self, cause: str, cell: Cell | None, line: int) -> str:
        where = f"{cell_name(cell.number, cell.id)}, line {cell.head.count(chr(10)) + line}: " if cell else ""
        return f"{self.name}: {where}{cause}"


def cell_name(number: int, id: str) -> str:
    return f"cell {number} ({f'id {id}' if id else 'no id'})"


def lf(text: str) -> str:
    "`text` with every line end a newline character."
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def chapter(path: Path) -> str:
    "The chapter number a notebook's name begins with: `05a` of `05a_foundations.ipynb`; empty without one."
    m = re.match(r"([0-9]{2,}[a-zA-Z]?)(_|$)", path.stem)
    return m[1].lower() if m else ""


def read(nb: Notebook, raw: bytes | None = None) -> bytes | None:
    "Fills in `nb` from the bytes of its file, which are read where they are not given; returns them."
    try:
        raw = raw or read_file(nb.path)
        nb.data = parse(raw)
    except BadFile as e:
        return nb.fault(str(e))
    check_ids(nb)
    nb.cells = list(exported_cells(nb))
    return raw


def canonical(data: dict) -> bytes:
    "A notebook's file as nbdev writes it; half a character, which no file can hold, stays the escape it was."
    return (json.dumps(data, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def id_of(cell: dict) -> str:
    "The id of a cell, empty when it has no valid one."
    id = cell.get("id")
    return id if isinstance(id, str) and _id.fullmatch(id) else ""


def check_ids(nb: Notebook) -> None:
    "Each cell needs an id of its own: by it, edits in a module find their way back."
    seen = {}
    for i, c in enumerate(nb.data["cells"], 1):
        id = id_of(c)
        if seen.setdefault(id, i) != i and id:
            nb.fault(f"{cell_name(i, id)}: duplicate cell id, also that of cell {seen[id]}: `make clean-nbs` mends it")
    if "" in seen:
        nb.fault(f"cell {seen['']} has no valid cell id: `make clean-nbs` gives one to each that lacks it")


def exported_cells(nb: Notebook) -> Iterator[Cell]:
    "The exported cells that hold code; what looks amiss in any cell is noted in `nb`."
    for i, c in enumerate(nb.data["cells"], 1):
        kind, src, where = c["cell_type"], lf("".join(c["source"])), cell_name(i, id_of(c))
        parts = split_mark(src) if kind == "code" else None
        if ("<<<<<<<" in src or ">>>>>>>" in src) and (m := _conflict.search(src)) and not parses(src):
            line = src.count("\n", 0, m.start()) + 1
            nb.fault(f"{where}, line {line}: merge-conflict markers: resolve the merge first")
        elif parts and parts[1].strip():
            yield Cell(i, id_of(c), *parts)
        elif parts:
            nb.warn(f"{where}: marked #export, but empty")
        if cause := near_miss(kind, src):
            nb.warn(f"{where}{cause}")


def split_mark(src: str) -> tuple[str, str] | None:
    "The source of an exported cell up to and including its mark line, and the rest; `None` for any other cell."
    m = MARK.match(src)
    return (src[:m.end() + 1], src[m.end() + 1:]) if m and m[1].lower() == "export" else None


def near_miss(kind: str, src: str) -> str | None:
    "Where and what somebody may have meant as a mark that is none, or `None`."
    first = next(_first_line.finditer(src))                # it fits any text
    if kind != "code":                                     # where `# Export` is a heading
        meant = re.match(r"\s*#(\s*\|\s*)?export\b", first[1], re.I)
        return ": #export in a cell that is not code" if meant else None
    for m in _mark_line.finditer(src, first.end()) if "#" in src else ():
        if not parses(src[:m.start()] + "$" + src[m.end():]):          # if it does, the mark is words in a string
            line = src.count("\n", 0, m.start()) + 1
            return f", line {line}: the mark #{m[1].lower()} counts only on the first line, and one a cell"
    m = _like_a_mark.match(first[1])
    if not m or MARK.match(src):
        return None
    return f": {first[1].strip()[:60]!r} is no mark: is #{(m[1] or m[2] or 'export').lower()} meant?"


def parses(src: str) -> bool:
    "Is it Python?"
    try:
        ast.parse(src)
        return True
    except UNPARSABLE:
        return False
