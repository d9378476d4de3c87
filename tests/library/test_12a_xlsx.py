"The spreadsheet that chapter 12a writes: LibreOffice recomputes its formulas and gets the notebook's numbers."
import json
import math
from pathlib import Path

import pytest

pytest.importorskip("openpyxl")
from openpyxl import load_workbook
from sheets import needs_soffice, recompute

root = Path(__file__).resolve().parents[2]
CELLS = ("imports", "data", "gradient", "fit", "momentum", "rmsprop", "adam", "anneal", "xl-columns", "xl-sheets",
         "xl-rows", "xl-epochs", "xl-compare", "xl-style", "xl-write")
EPOCHS, ROWS, TOP = 40, 30, 10


@pytest.fixture(scope="module")
def chapter(tmp_path_factory):
    "The names of the notebook's own cells that fit and that make the spreadsheet; `book` is the file."
    nb = json.loads((root / "nbs/12a_graddesc.ipynb").read_text(encoding="utf-8"))
    source = {c["id"]: "".join(c["source"]) for c in nb["cells"]}
    work = tmp_path_factory.mktemp("12a")
    (work / "nbs").mkdir()
    ns = {"math": math}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work / "nbs")
        patch.syspath_prepend(str(root))
        patch.setenv("MPLBACKEND", "agg")
        for cell in CELLS:
            exec(compile(source[cell], f"12a_graddesc.ipynb, cell {cell}", "exec"), ns)
    return {**ns, "book": work / "_out/xl/graddesc.xlsx"}


def fits(nb: dict, rates: dict | None = None) -> dict:
    "What the notebook's Python makes of every method, 40 epochs each; `rates` overrides."
    def make(name, rule): return nb["Fit"](rule, (rates or {}).get(name, nb["sheets"][name][0]["rate"]))
    rules = dict(sgd="Gradient", momentum="Average", rmsprop="Scaled", adam="Both")
    return {**{name: make(name, nb[rule]).run(EPOCHS) for name, rule in rules.items()},
            "annealer": nb["anneal"](make("annealer", nb["Both"]), EPOCHS)}


def columns(ws, first: int, n: int, left: int = 1) -> dict:
    "The `n` rows from `first` on as `{head: values}`, for the columns from `left` on."
    grid = list(ws.iter_rows(min_row=TOP, max_row=first + n - 1, min_col=left, values_only=True))
    return {h: [row[j] for row in grid[first - TOP:first - TOP + n]] for j, h in enumerate(grid[0]) if h}


def near(found, want) -> None:
    "Equal to 1e-6: absolutely below 1, relatively above."
    assert list(found) == pytest.approx(list(want), rel=1e-6, abs=1e-6)


def check(book, want: dict) -> None:
    """Compare every epoch, and the weights after every row, with the notebook's fits.

    Of Adam at a constant rate only the first epochs: it is chaotic, as the chapter shows, so that last digits matter.
    """
    for name, fit in want.items():
        n = 6 if name == "adam" else EPOCHS
        epochs, rows = columns(book[name], TOP + 1, n), columns(book[name], TOP + 1, n*ROWS + 1, left=9)
        for head, k in dict(intercept="b", slope="a", RMSE="rmse", msg="msg", rate="lr").items():
            near(epochs[head], [e[k] for e in fit.log[:n]])
        near(rows["b"], [b for b, _ in fit.path[:n*ROWS + 1]])
        near(rows["a"], [a for _, a in fit.path[:n*ROWS + 1]])
        for left, k in ((2, "rmse"), (9, "b")):
            col = left + list(want).index(name)
            near([book["compare"].cell(4 + i, col).value for i in range(n)], [e[k] for e in fit.log[:n]])


def test_what_is_computed_is_a_formula(chapter):
    book = load_workbook(chapter["book"])
    for name in chapter["sheets"]:
        rows = columns(book[name], TOP + 2, EPOCHS*ROWS, left=9)
        assert all(str(v).startswith("=") for col in rows.values() for v in col)
        epochs = columns(book[name], TOP + 1, EPOCHS)
        assert epochs.pop("epoch") == list(range(1, EPOCHS + 1))
        assert all(str(v).startswith("=") for h in list(epochs)[:6] for v in epochs[h])
    assert all(c.value is None for c in load_workbook(chapter["book"], data_only=True)["adam"]["I"][TOP + 1:])


@needs_soffice
def test_libreoffice_gets_the_notebooks_numbers(chapter, tmp_path):
    book = recompute(chapter["book"], tmp_path)
    check(book, fits(chapter))
    rows = columns(book["sgd"], TOP + 2, EPOCHS*ROWS, left=9)
    near([e - 0.01 for e in rows["est_b"]], rows["grad_b"])                     # finite differences: off by h and h x²
    near([e - 0.01*x**2 for e, x in zip(rows["est_a"], rows["x"], strict=True)], rows["grad_a"])


@needs_soffice
def test_a_changed_input_changes_the_results(chapter, tmp_path):
    book = load_workbook(chapter["book"])
    rates = dict(sgd=5e-5, momentum=1e-4, rmsprop=0.05, adam=0.3, annealer=0.7)
    for name, rate in rates.items():
        book[name]["B3"].value = rate
    book.save(tmp_path / "changed.xlsx")
    check(recompute(tmp_path / "changed.xlsx", tmp_path), fits(chapter, rates))
