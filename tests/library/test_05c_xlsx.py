"The spreadsheet that chapter 05c writes: LibreOffice recomputes its formulas and gets the notebook's numbers."
import json
from pathlib import Path

import pytest

pytest.importorskip("openpyxl")
import torch
import torch.nn.functional as F
from openpyxl import load_workbook
from sheets import needs_soffice, recompute

root = Path(__file__).resolve().parents[2]
CELLS = ("imports", "trap-data", "trap-softmax", "xlsx-block", "xlsx-style", "xlsx-write")


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    "The names of the notebook's own cells that make the spreadsheet, run in a folder of their own; `book` is the file."
    nb = json.loads((root / "nbs/05c_statistics.ipynb").read_text(encoding="utf-8"))
    source = {c["id"]: "".join(c["source"]) for c in nb["cells"]}
    work = tmp_path_factory.mktemp("05c")
    (work / "nbs").mkdir()
    ns = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work / "nbs")
        patch.syspath_prepend(str(root))
        patch.setenv("MPLBACKEND", "agg")
        for cell in CELLS:
            exec(compile(source[cell], f"05c_statistics.ipynb, cell {cell}", "exec"), ns)
    return {**ns, "book": work / "_out/xl/entropy_example.xlsx"}


def photos(sheet, n: int) -> list[dict]:
    "Each photo's columns as `{head: values}`, the row of sums under `sums`; found by the heads, not by row number."
    rows = [[c.value for c in row] for row in sheet.iter_rows()]
    tops = [i for i, row in enumerate(rows) if row[0] == "object"]
    return [{**{h: [row[k] for row in rows[top + 1:top + 1 + n]] for k, h in enumerate(rows[top])},
             "sums": dict(zip(rows[top], rows[top + 1 + n], strict=True))} for top in tops]


def check(found: list[dict], nb: dict, acts: torch.Tensor) -> None:
    "Compare every computed column with the notebook's functions and the library's losses on `acts`."
    assert len(found) == len(acts) == 2
    for photo, x, label, truth in zip(found, acts, nb["label"], nb["truth"], strict=True):
        there, target = nb["binomial"](x), torch.tensor(truth, dtype=x.dtype)
        bce = F.binary_cross_entropy(there, target, reduction="none")
        want = {"activation": x, "exp": x.exp(), "softmax": nb["softmax"](x), "binomial": there,
                "binary cross-entropy": bce}
        for head, col in want.items():
            assert photo[head] == pytest.approx(col.tolist(), abs=1e-5), head
        assert photo["object"] == nb["names"]
        assert photo["over cut-off"] == ["yes" if p > 0.5 else "no" for p in there]
        assert photo["sums"]["softmax"] == pytest.approx(1)
        ce = F.cross_entropy(x, torch.tensor(label.index(1)))
        assert photo["sums"]["cross-entropy"] == pytest.approx(ce.item(), abs=1e-5)
        assert photo["sums"]["binary cross-entropy"] == pytest.approx(bce.sum().item(), abs=1e-5)


def test_every_computed_cell_is_a_formula(chapter):
    sheet = load_workbook(chapter["book"])["softmax"]
    inputs = {"object", "activation", "label", "is there"}
    for photo in photos(sheet, len(chapter["names"])):
        for head, col in photo.items():
            if head not in inputs | {"sums"}:
                assert all(str(v).startswith("=") for v in col), head
    unread = load_workbook(chapter["book"], data_only=True)["softmax"]
    assert all(c.value is None for row in unread["C5:D9"] for c in row)  # no values stored: nobody has computed it yet


@needs_soffice
def test_libreoffice_gets_the_notebooks_numbers(chapter, tmp_path):
    found = photos(recompute(chapter["book"], tmp_path)["softmax"], len(chapter["names"]))
    check(found, chapter, chapter["acts"])
    assert found[0]["softmax"] == pytest.approx(found[1]["softmax"], abs=1e-5)  # the trap: two photos, one softmax


@needs_soffice
def test_a_changed_activation_changes_the_results(chapter, tmp_path):
    book = load_workbook(chapter["book"])
    cell = next(c for c in book["softmax"]["B"] if c.value == pytest.approx(chapter["acts"][1, 2].item()))
    cell.value = -3.25
    book.save(tmp_path / "changed.xlsx")
    acts = chapter["acts"].clone()
    acts[1, 2] = -3.25
    check(photos(recompute(tmp_path / "changed.xlsx", tmp_path)["softmax"], len(chapter["names"])), chapter, acts)
