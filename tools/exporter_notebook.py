"""A notebook as the exporter sees it: read as JSON, checked, its marks found, and new code put in with care."""
import ast
import json
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from common import MARKS, cell_mark

UNPARSABLE = SyntaxError, ValueError, RecursionError, MemoryError, OverflowError    # what Python raises on odd source


@dataclass
class Cell:
    "An exported cell: `head` ends with its mark line, `body` is its code, which `start`s on that line of the module."
    number: int
    id: str
    head: str
    body: str
    start: int = 0


@dataclass
class Notebook:
    "A notebook, its `name` in messages and modules, its file as read, its exported cells, and what is wrong with it."
    path: Path
    name: str
    chapter: str
    text: str = ""
    cells: list[Cell] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def fault(self, cause: str, cell: Cell | None = None, line: int = 1) -> None:
        "Notes a fault of the notebook, or of a line of the code of one cell."
        self.faults.append(f"{self.name}: {place(cell, line) + ': ' if cell else ''}{cause}")

    def warn(self, cause: str) -> None:
        self.warnings.append(f"{self.name}: {cause}")

    def at(self, line: int) -> tuple[Cell, int]:
        "The cell that a line of the module's joined blocks comes from, and which line of its code that is."
        cell = self.cells[max(0, bisect_right(self.cells, line, key=lambda c: c.start) - 1)]
        return cell, line - cell.start + 1


def place(cell: Cell, line: int) -> str:
    "Where a line of a cell's code is, in the reader's counting."
    return f"{cell_name(cell.number, cell.id)}, line {cell.head.count(chr(10)) + line}"


def cell_name(number: int, id: str) -> str:
    return f"cell {number} ({f'id {id}' if id else 'no id'})"


def lf(text: str) -> str:
    "`text` with every line end a newline character."
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def chapter(path: Path) -> str:
    "The chapter number a notebook's name begins with: `05a` of `05a_foundations.ipynb`; empty without one."
    m = re.match(r"([0-9]{2,}[a-zA-Z]?)(_|$)", path.stem)
    return m[1].lower() if m else ""


def order(number: str) -> tuple[int, str]:
    "Sorts chapter numbers: 05 before 05a before 06."
    digits = re.match("[0-9]*", number)[0]
    return int(digits or 0), number[len(digits):]


# -- reading -----------------------------------------------------------------------------------------------------------

def load(nb: Notebook) -> bytes:
    "Reads the file of `nb`, fills in `nb`, returns the file's bytes."
    if nb.path.exists() and not nb.path.is_file():         # a pipe would never end
        return nb.fault("cannot be read: not a file")
    try:
        raw = nb.path.read_bytes()
    except OSError as e:
        return nb.fault(f"cannot be read: {e.strerror}")
    read(nb, raw)
    return raw


def read(nb: Notebook, raw: bytes) -> None:
    "Fills in `nb` from the bytes of its file."
    try:
        nb.text = raw.decode()
        data = json.loads(nb.text.removeprefix("\ufeff"))
    except UnicodeDecodeError as e:
        return nb.fault(f"not a notebook: byte {e.start} is not UTF-8 text")
    except (ValueError, RecursionError) as e:
        return nb.fault(why_not_json(nb.text.removeprefix("\ufeff"), e))
    if cause := why_not_notebook(data):
        return nb.fault(cause)
    check_ids(nb, data["cells"])
    nb.cells = list(exported_cells(nb, data["cells"]))


def why_not_json(text: str, e: Exception) -> str:
    "What is wrong with a file that is not JSON."
    if not text.strip():
        return "not a notebook: the file is empty"
    if m := re.search(r"^(<{7} |>{7} |={7}$)", text, re.M):
        return f"line {text.count(chr(10), 0, m.start()) + 1}: merge-conflict markers: resolve the merge first"
    if isinstance(e, json.JSONDecodeError):
        cut = ": was it cut short?" if e.pos >= len(text.rstrip()) or e.msg.startswith("Unterminated") else ""
        return f"line {e.lineno}: not a notebook: broken JSON: {e.msg}{cut}"
    return f"not a notebook: {str(e) or type(e).__name__}"


def why_not_notebook(data: object) -> str | None:
    "What keeps parsed JSON from being a notebook in format 4, or `None`."
    version = data.get("nbformat") if isinstance(data, dict) else None
    if version == 3 or isinstance(data, dict) and "worksheets" in data:
        return "notebook format 3 is too old: `jupyter nbconvert --to notebook --nbformat 4 --inplace` renews it"
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list):
        return "not a notebook: JSON without a list of cells"
    if version != 4:
        return f"notebook format {json.dumps(version)[:20]} is not known here, only 4"
    for i, c in enumerate(data["cells"], 1):
        src = c.get("source") if isinstance(c, dict) else None
        sound = isinstance(src, str) or isinstance(src, list) and all(isinstance(s, str) for s in src)
        if not sound or c.get("cell_type") not in ("code", "markdown", "raw"):
            return f"cell {i}: not a notebook's cell{explain(data)}"
    return None


def explain(data: dict) -> str:
    "What nbformat's validator says about a notebook that is not one."
    try:
        import nbformat
        nbformat.validate(data, relax_add_props=True)
    except Exception as e:                                 # ImportError; others than its own explain nothing
        if type(e).__module__.split(".")[0] in ("nbformat", "jsonschema", "fastjsonschema"):
            return ": " + (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
    return ""


_id = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def id_of(cell: dict) -> str:
    "The id of a cell, empty when it has no valid one."
    id = cell.get("id")
    return id if isinstance(id, str) and _id.fullmatch(id) else ""


def check_ids(nb: Notebook, cells: list[dict]) -> None:
    "Each cell needs an id of its own: by it, edits in a module find their way back."
    seen, lacking = {}, []
    for i, c in enumerate(cells, 1):
        if not (id := id_of(c)):
            lacking.append(i)
        elif seen.setdefault(id, i) != i:
            nb.fault(f"{cell_name(i, id)}: duplicate cell id, also that of cell {seen[id]}: `make clean-nbs` mends it")
    if lacking:
        more = f" (nor do {len(lacking) - 1} more)" if lacking[1:] else ""
        nb.fault(f"cell {lacking[0]} has no valid cell id{more}: `make clean-nbs` adds them")


def exported_cells(nb: Notebook, cells: list[dict]) -> Iterator[Cell]:
    "The exported cells that hold code; what looks amiss in any cell is noted in `nb`."
    for i, c in enumerate(cells, 1):
        src = lf(c["source"] if isinstance(c["source"], str) else "".join(c["source"]))
        where = cell_name(i, id_of(c))
        parts = split_mark(src) if c["cell_type"] == "code" else None
        if line := conflict_line(c["cell_type"], src):
            nb.fault(f"{where}, line {line}: merge-conflict markers: resolve the merge first")
        elif parts and parts[1].strip():
            yield Cell(i, id_of(c), *parts)
        elif parts:
            nb.warn(f"{where}: marked #export, but empty")
        if cause := near_miss(c["cell_type"], src, parts):
            nb.warn(f"{where}{cause}")


def conflict_line(cell_type: str, src: str) -> int | None:
    "The line of a cell with a merge-conflict marker: git's in code that does not parse, or a cell nbdev made of one."
    if "<<<<<<<" not in src and ">>>>>>>" not in src:
        return None
    if cell_type != "code":
        return 1 if re.fullmatch(r"`?(<{7}|>{7})( [^\n]*)?", src.strip()) else None
    m = re.search(r"^(<{7}|>{7})( |$)", src, re.M)
    try:
        ast.parse(src if m else "")
    except UNPARSABLE:
        return src.count("\n", 0, m.start()) + 1


# -- marks -------------------------------------------------------------------------------------------------------------

_first_line = re.compile(r"(?:[^\S\n]*\n)*([^\n]*)\n?")
_mark_line = re.compile(rf"^[^\S\n]*#[^\S\n]*\|?[^\S\n]*({'|'.join(MARKS)})[^\S\n]*$", re.I | re.M)


def split_mark(src: str) -> tuple[str, str] | None:
    "An exported cell's source up to and including its mark line, and the rest; `None` for any other cell."
    m = _first_line.match(src)
    if cell_mark(m[1]) != "export" or len(m[1].splitlines()) > 1:
        return None
    return src[:m.end()], src[m.end():]


def near_miss(cell_type: str, src: str, parts: tuple[str, str] | None) -> str | None:
    "Where and what somebody may have meant as a mark that is none, or `None`."
    first = _first_line.match(src)
    if cell_type != "code":
        return ": #export in a cell that is not code" if re.fullmatch(r"\s*#\|?export\s*", first[1], re.I) else None
    for m in _mark_line.finditer(src, first.end()) if "#" in src else ():
        line = src.count("\n", 0, m.start()) + 1
        if is_comment(src, line):
            return f", line {line}: the mark #{m[1].lower()} counts only on the first line, and one a cell"
    if parts or "#" not in first[1] or cell_mark(first[1]) in ("slow", "cuda"):
        return None
    m = re.match(r"\s*#(?:\|?export\b.*|[\s|]*export\W+\S+\s*|[\s#|!%:]*(\w+)\W*)$", first[1], re.I)
    if m and (m[1] is None or like_export(m[1].lower())):
        return f": {first[1].strip()[:60]!r} is no mark: is #export meant?"
    return None


def like_export(word: str) -> bool:
    "Is `word` a slip of the pen for export? (`report` is not.)"
    from difflib import SequenceMatcher
    return SequenceMatcher(None, word, "export").ratio() >= (0.75 if "x" in word else 0.9)


def is_comment(src: str, line: int) -> bool:
    "Is that line of `src` a comment, not part of a string?"
    import tokenize
    lines = iter(src.split("\n"))
    try:
        tokens = tokenize.generate_tokens(lambda: next(lines) + "\n")
        return any(t.type == tokenize.COMMENT and t.start[0] == line for t in tokens)
    except (tokenize.TokenError, SyntaxError):
        return True


# -- putting code back -------------------------------------------------------------------------------------------------

_blank = re.compile(r"[ \t\r\n]*")
_json = json.JSONDecoder()


def values(text: str, i: int) -> Iterator[tuple[str | None, int, int]]:
    "Key (`None` in an array), start and end of each value in the JSON object or array that begins at `text[i]`."
    is_object, key = text[i] == "{", None
    i = _blank.match(text, i + 1).end()
    while text[i] not in "]}":
        if is_object:
            key, i = _json.raw_decode(text, i)
            i = _blank.match(text, _blank.match(text, i).end() + 1).end()
        _, end = _json.raw_decode(text, i)
        yield key, i, end
        i = _blank.match(text, end).end()
        i = _blank.match(text, i + 1).end() if text[i] == "," else i


def spliced(text: str, changes: dict[int, str]) -> str:
    "The notebook `text` with new sources for some cells (by number), and every other character as it was."
    to_ascii = text.removeprefix("\ufeff").isascii() and bool(re.search(r"\\u(?!00[01])[0-9a-fA-F]{4}", text))
    top = _blank.match(text, 1 if text.startswith("\ufeff") else 0).end()
    cells = {key: start for key, start, _ in values(text, top)}["cells"]
    starts = [start for _, start, _ in values(text, cells)]
    for number in sorted(changes, reverse=True):
        start, end = {key: (a, b) for key, a, b in values(text, starts[number - 1])}["source"]
        text = text[:start] + source_json(text[start:end], changes[number], to_ascii) + text[end:]
    return text


def source_json(old: str, new: str, to_ascii: bool) -> str:
    "The source `new` as JSON, laid out like the JSON `old` of the source that it replaces."
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
