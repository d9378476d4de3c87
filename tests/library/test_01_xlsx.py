"The spreadsheet that chapter 01 writes: LibreOffice computes what broadcasting does, also after a number was changed."
import json
import re
from itertools import product
from pathlib import Path

import pytest

pytest.importorskip("openpyxl")
import torch
from openpyxl import load_workbook
from sheets import needs_soffice, recompute

root = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    "The names of the cells that write the file, run in a folder of their own; `path` is made absolute."
    nb = json.loads((root / "nbs/01_matmul.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(c["source"]) for c in nb["cells"] if c["cell_type"] == "code"]
    first = next(i for i, s in enumerate(cells) if s.startswith("from openpyxl import Workbook"))
    work = tmp_path_factory.mktemp("01")
    (work / "nbs").mkdir()
    m, r = torch.arange(1., 10).view(3, 3), torch.tensor([10., 20, 30])
    ns = {"torch": torch, "product": product, "Path": Path, "re": re, "m": m, "row": r[None], "col": r[:, None]}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work / "nbs")
        for source in cells[first:first + 2]:
            exec(compile(source, "01_matmul.ipynb", "exec"), ns)
    return {**ns, "path": work / "_out/xl/broadcasting.xlsx"}


def result(ws) -> list:
    return [[cell.value for cell in line] for line in ws["I1:K3"]]


def test_results_are_formulas_that_point_at_the_cells_that_are_repeated(chapter):
    book = load_workbook(chapter["path"])
    assert book.sheetnames == list(chapter["sheets"])
    assert all(str(v).startswith("=") for ws in book for line in result(ws) for v in line)
    assert book["row + matrix"]["K3"].value == "=C$1+G3" and book["comparison"]["K3"].value == "=$A3>G$1"
    assert all(ws[c].value is None for ws in book for c in ("D1", "H1", "L1", "A4", "I4"))


@needs_soffice
def test_libreoffice_computes_what_broadcasting_does(chapter, tmp_path):
    book = recompute(chapter["path"], tmp_path)
    for name, (_, _, _, expected) in chapter["sheets"].items():
        assert result(book[name]) == expected.tolist(), name


@needs_soffice
def test_one_changed_number_is_used_wherever_it_is_repeated(chapter, tmp_path):
    book = load_workbook(chapter["path"])
    book["row + matrix"]["B1"].value = -5
    book.save(tmp_path / "changed.xlsx")
    new = result(recompute(tmp_path / "changed.xlsx", tmp_path)["row + matrix"])
    row = chapter["row"].clone()
    row[0, 1] = -5
    assert new == (row + chapter["m"]).tolist()
