"""A notebook as the runner sees it: read, judged, and what became of it."""
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import MARK, BadFile, parse, printable, read_file

from runner.text import shorten


@dataclass
class CellRun:
    "What became of a cell that ran: `number` is from 1, markdown counted."
    number: int
    id: str
    title: str
    seconds: float = 0


@dataclass
class Fault:
    "One thing that went wrong: the cause, and what helps to understand it."
    cause: str
    line: int | None = None
    traceback: str = ""
    run: CellRun | None = None                             # the cell it happened in


def check(doc: dict) -> None:
    "What running relies on besides what `parse` sees to; raises `BadFile`."
    def need(true: bool, otherwise: str) -> None:
        if not true:
            raise BadFile(otherwise)
    meta: Any = doc.get("metadata", {})
    need(isinstance(meta, dict), "its metadata is not an object")
    for n, c in enumerate(doc["cells"], 1):
        cell_meta: Any = c.get("metadata", {})
        need(c["cell_type"] != "code" or not re.search("[\ud800-\udfff]", "".join(c["source"])),
             f"cell {n}: its source holds half a character (a lone surrogate): write it anew")
        need(isinstance(cell_meta, dict) and isinstance(cell_meta.get("tags", []), list),
             f"cell {n}: its metadata is not an object with a list of tags")
        need(isinstance(c.get("outputs", []), list), f"cell {n}: its outputs are not a list")
    spec, info = (meta.get(k) if isinstance(meta.get(k), dict) else {} for k in ("kernelspec", "language_info"))
    language = str(spec.get("language") or info.get("name") or "python").lower()
    need(language.startswith(("python", "ipython")),
         f"a notebook in {printable(language)[:60]}: only Python notebooks are run")


class Notebook:
    "A notebook and what became of it."

    def __init__(self, path: Path, label: str):
        self.path, self.label = path, label
        self.state, self.seconds = "skipped", 0.0
        self.raw, self.doc = b"", {}
        self.cells: list[dict] = []
        self.skips: dict[int, str] = {}                    # index of a cell -> reason
        self.executed: dict[int, tuple] = {}               # index -> outputs, execution count
        self.numbers: dict[Any, int] = {}                  # the kernel's number of a cell -> ours
        self.runs: list[CellRun] = []
        self.faults: list[Fault] = []
        self.notes: list[str] = []

    def read(self, slow: bool, cuda: bool) -> None:
        "Load the file and decide what is skipped; raises `BadFile`."
        self.raw = read_file(self.path)
        self.doc = parse(self.raw)
        check(self.doc)
        self.cells = self.doc["cells"]
        for i, c in enumerate(self.cells):
            if c["cell_type"] == "code":
                mark = MARK.match(self.source(c))
                if mark and not {"export": True, "slow": slow, "cuda": cuda}[mark[1].lower()]:
                    self.skips[i] = f"#{mark[1].lower()}"
                elif "skip-execution" in c.get("metadata", {}).get("tags", []):
                    self.skips[i] = "tagged skip-execution"

    @staticmethod
    def source(cell: dict) -> str:
        return "".join(cell["source"]).replace("\r\n", "\n")

    def cell_run(self, index: int) -> CellRun:
        "The record of a cell that is about to run; its title is its first line of code."
        lines = [t.strip() for t in self.source(self.cells[index]).splitlines()]
        title = next((t for t in lines if t and not t.startswith("#")), lines[0] if lines else "")
        return CellRun(index + 1, printable(str(self.cells[index].get("id") or ""))[:80], shorten(title, 80))

    @property
    def has_code(self) -> bool:
        return any(c["cell_type"] == "code" and self.source(c).strip() and i not in self.skips
                   for i, c in enumerate(self.cells))

    def with_outputs(self, counts: bool) -> dict:
        "The document with the new outputs; cells that were not run keep theirs."
        cells = [dict(c) for c in self.cells]
        for i, (outputs, count) in self.executed.items():
            cells[i] |= {"outputs": outputs, "execution_count": count if counts else None}
        return {**self.doc, "cells": cells}

    def forget(self) -> None:
        "Free what is only needed while running."
        self.raw, self.doc, self.cells, self.executed = b"", {}, [], {}
