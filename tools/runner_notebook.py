"""A notebook as the runner sees it: read and judged, its results, made tidy and saved."""
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from common import atomic_write, cell_mark, printable, remove_leftovers

_ansi = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
WIDGET = "application/vnd.jupyter.widget-view+json"


class BadFile(Exception):
    "Not a notebook that can be run: what is wrong and what to do."


class NotSaved(Exception):
    "Why the outputs were not written."


@dataclass
class Fault:
    "One thing that went wrong: where, the cause in a line, and what helps to understand it."
    cause: str
    cell: int | None = None                                # number of the cell, from 1, markdown counted
    cell_id: str = ""
    line: int | None = None
    source: str = ""
    traceback: str = ""
    outputs: list = field(default_factory=list)


@dataclass
class CellRun:
    "What became of one cell."
    cell: int
    cell_id: str
    title: str
    seconds: float = 0
    state: str = "passed"
    reason: str = ""


def plain(text: str) -> str:
    "Without terminal codes."
    return _ansi.sub("", text)


def one_line(text: str, width: int = 200) -> str:
    "The first line, shortened."
    line = next((t.strip() for t in text.splitlines() if t.strip()), "")
    return line if len(line) <= width else line[:width - 1] + "…"


# -- reading ----------------------------------------------------------------------------------------------------------

def parse(raw: bytes) -> dict:
    "The notebook in a file's bytes; raises `BadFile`."
    if not raw.strip():
        raise BadFile("the file is empty: restore it (git checkout) or delete it")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise BadFile(f"not UTF-8 (byte {e.start}): save it as UTF-8") from None
    try:
        doc = json.loads(text)
    except (ValueError, RecursionError) as e:
        if re.search(r"^<{7} ", text, re.M):
            raise BadFile("holds merge-conflict markers: run nbdev-fix, or choose a side in an editor") from None
        where = f"line {e.lineno}, column {e.colno}: {e.msg}" if isinstance(e, json.JSONDecodeError) else \
            "too deep" if isinstance(e, RecursionError) else str(e)
        raise BadFile(f"not JSON ({where}): restore the file (git checkout)") from None
    if not isinstance(doc, dict) or "nbformat" not in doc:
        raise BadFile("JSON, but not a notebook (no nbformat)")
    if doc["nbformat"] != 4:
        raise BadFile(f"nbformat {json.dumps(doc['nbformat'])[:20]}, and only 4 is read: convert it with "
                      "jupyter nbconvert --to notebook --inplace")
    check(doc)
    return doc


def check(doc: dict) -> None:
    "The few things running relies on; raises `BadFile`."
    meta, cells = doc.get("metadata", {}), doc.get("cells")
    if not isinstance(meta, dict):
        raise BadFile("its metadata is not an object")
    if not isinstance(cells, list):
        raise BadFile("has no list of cells")
    for n, c in enumerate(cells, 1):
        if not isinstance(c, dict) or c.get("cell_type") not in ("code", "markdown", "raw"):
            raise BadFile(f"cell {n} is not a code, markdown or raw cell")
        src = c.get("source")
        if not (isinstance(src, str) or isinstance(src, list) and all(isinstance(s, str) for s in src)):
            raise BadFile(f"cell {n}: its source is not text")
        if c["cell_type"] == "code" and re.search("[\ud800-\udfff]", "".join(src)):
            raise BadFile(f"cell {n}: its source holds half a character (a lone surrogate): write it anew")
        if not isinstance(c.get("metadata", {}), dict) or not isinstance(c.get("metadata", {}).get("tags", []), list):
            raise BadFile(f"cell {n}: its metadata is not an object with a list of tags")
        if not isinstance(c.get("outputs", []), list):
            raise BadFile(f"cell {n}: its outputs are not a list")
    spec, info = (meta.get(k) if isinstance(meta.get(k), dict) else {} for k in ("kernelspec", "language_info"))
    language = str(spec.get("language") or info.get("name") or "python").lower()
    if not language.startswith(("python", "ipython")):
        raise BadFile(f"a notebook in {printable(language)[:60]}: only Python notebooks are run")


class Notebook:
    "A notebook and what became of it."

    def __init__(self, path: Path, label: str):
        self.path, self.label = path, label
        self.state, self.seconds, self.why = "skipped", 0.0, ""
        self.cells: list[dict] = []
        self.skips: dict[int, str] = {}                    # index of a cell -> reason
        self.executed: dict[int, tuple] = {}               # index -> outputs, execution count
        self.runs: list[CellRun] = []
        self.faults: list[Fault] = []
        self.notes: list[str] = []

    def read(self, slow: bool, cuda: bool) -> None:
        "Load the file and decide what is skipped; raises `BadFile`."
        if self.path.exists() and not self.path.is_file():  # a pipe would never end
            raise BadFile("cannot be read: not a file")
        try:
            self.raw = self.path.read_bytes()
        except OSError as e:
            raise BadFile(f"cannot be read: {e.strerror or e}") from None
        self.doc = parse(self.raw)
        self.cells = self.doc["cells"]
        for i, c in enumerate(self.cells):
            if c["cell_type"] == "code":
                mark = cell_mark(self.source(c))
                if mark == "slow" and not slow or mark == "cuda" and not cuda:
                    self.skips[i] = f"#{mark}"
                elif "skip-execution" in c.get("metadata", {}).get("tags", []):
                    self.skips[i] = "tagged skip-execution"
        if any(not c.get("id") for c in self.cells):
            self.notes.append("cells without ids (make clean-nbs adds them)")

    @staticmethod
    def source(cell: dict) -> str:
        src = cell.get("source", "")
        return (src if isinstance(src, str) else "".join(src)).replace("\r\n", "\n")

    def cell_id(self, index: int) -> str:
        return printable(str(self.cells[index].get("id") or ""))[:80]

    def title(self, index: int) -> str:
        "The cell's first line of code."
        lines = [t.strip() for t in self.source(self.cells[index]).splitlines()]
        return next((t for t in lines if t and not t.startswith("#")), lines[0] if lines else "")[:80]

    @property
    def has_code(self) -> bool:
        return any(c["cell_type"] == "code" and self.source(c).strip() and i not in self.skips
                   for i, c in enumerate(self.cells))

    def with_outputs(self, counts: bool) -> dict:
        "The document with the new outputs; cells that were not run keep theirs."
        cells = []
        for i, c in enumerate(self.cells):
            c = dict(c)
            if i in self.executed:
                c["outputs"], c["execution_count"] = self.executed[i][0], self.executed[i][1] if counts else None
            cells.append(c)
        return {**self.doc, "cells": cells}

    def save(self) -> bool:
        "Write the new outputs, clean, into the file; returns whether it changed. Raises `NotSaved`."
        try:
            new = clean_bytes(self.with_outputs(counts=False), self.path.parent)
            self.check_unchanged()
            if new != self.raw:
                if not self.path.stat().st_mode & 0o222:
                    raise NotSaved("not saved: the file is read-only")
                remove_leftovers(self.path)
                atomic_write(self.path, new, self.check_unchanged)
        except OSError as e:
            raise NotSaved(f"not saved, the file is as it was: {e.strerror or e}") from None
        except UnicodeEncodeError:
            raise NotSaved("not saved: a cell holds half a character (a lone surrogate)") from None
        except ImportError as e:
            raise NotSaved(f"not saved: --save needs nbdev (pip install nbdev): {e}") from None
        except (AttributeError, KeyError, TypeError, ValueError) as e:     # parts that running does not look at
            raise NotSaved(one_line(f"not saved: nbdev could not clean it: {type(e).__name__}: {e}")) from None
        return new != self.raw

    def check_unchanged(self) -> None:
        "Raises `NotSaved` if the file is no longer the one that was read: somebody saved it meanwhile."
        try:
            now = self.path.read_bytes()
        except FileNotFoundError:
            raise NotSaved("not saved: the file was removed or renamed while the notebook ran") from None
        if now != self.raw:
            raise NotSaved("not saved: the file changed while the notebook ran, and your changes matter more")

    def forget(self) -> None:
        "Free what is only needed while running."
        self.raw, self.doc, self.cells, self.executed = b"", {}, [], {}
        for fault in self.faults:
            fault.outputs, fault.source = [], ""


# -- tidying and saving -----------------------------------------------------------------------------------------------

def clean_bytes(doc: dict, folder: Path) -> bytes:
    """The file nbdev's clean would leave for `doc`, without widget state. Tags are kept wherever the notebook is.

    It is written here, as nbdev's own writer drops what ends in `_`, such as the key `a_` of a JSON output.
    """
    from nbdev.clean import clean_nb
    from nbdev.config import get_config
    from nbformat import from_dict
    from nbformat.v4.rwbase import split_lines
    cfg = get_config(path=folder)
    doc = json.loads(json.dumps(doc))
    doc.get("metadata", {}).pop("widgets", None)
    keys = {k: cfg.get(k) or [] for k in ("allowed_metadata_keys", "allowed_cell_metadata_keys",
                                          "allowed_out_metadata_keys")}
    keys["allowed_cell_metadata_keys"] = ["tags", *keys["allowed_cell_metadata_keys"]]
    clean_nb(doc, clear_all=False, clean_ids=cfg.clean_ids, **keys)
    lines = split_lines(from_dict(doc))
    return (json.dumps(lines, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode("utf-8")


def settle(line: str) -> str:
    "One line as a terminal would show it in the end: carriage returns and backspaces obeyed."
    line = line[:-1] if line.endswith("\r") else line
    if not re.search(r"[\r\b]|\x1b\[\d*[A-K]", line):
        return line
    line = re.sub(r"\x1b\[\d*[A-JK]", "", line)
    if "\x1b" in line:                                     # coloured: the last state is the one to see
        return re.sub(r"[^\b]\b", "", next((p for p in reversed(line.split("\r")) if p), ""))
    shown, at = [], 0
    for ch in line:
        if ch == "\r":
            at = 0
        elif ch == "\b":
            at = max(0, at - 1)
        else:
            shown[at:at + 1] = ch
            at += 1
    return "".join(shown).rstrip()


def tidy_outputs(outputs: list) -> list[dict]:
    """Outputs as plain dicts, fit for a file: streams between two rich outputs merged (stdout first: how the two
    alternate is chance), progress bars in their last state only, no widget views, which need a state to be alive."""
    tidy: list[dict] = []
    group: dict[str, str] = {}

    def close():
        for name in sorted(group, reverse=True):
            text = "\n".join(map(settle, group[name].split("\n")))
            if text.strip("\n") or "\r" not in group[name]:
                tidy.append({"output_type": "stream", "name": name, "text": text})
        group.clear()
    for o in map(_as_dict, outputs):
        if o["output_type"] == "stream":
            group[o["name"]] = group.get(o["name"], "") + o["text"]
            continue
        close()
        if "data" in o:
            o["data"].pop(WIDGET, None)
        tidy.append(o)
    close()
    return tidy


def _as_dict(node):
    "NotebookNodes as plain dicts, all the way down."
    if isinstance(node, dict):
        return {k: _as_dict(v) for k, v in node.items()}
    if isinstance(node, str):
        return node.encode("utf-8", "replace").decode("utf-8")  # halves of characters cannot be saved
    return [_as_dict(v) for v in node] if isinstance(node, (list, tuple)) else node


def shown_text(outputs: list[dict]) -> str:
    "What the outputs say, as text."
    texts = [o["text"] if o["output_type"] == "stream" else o.get("data", {}).get("text/plain", "") for o in outputs]
    return plain("\n".join(("".join(t) if isinstance(t, list) else str(t)).rstrip("\n") for t in texts if t))
