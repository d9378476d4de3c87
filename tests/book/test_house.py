"""The rules of the house (CONTRIBUTING.md): sizes, one direction, the seam between the eras, the door."""
import ast
import re

import pytest
from conftest import ROOT

MODULES = sorted((ROOT / "exp").glob("nb*.py"))
each = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
LINES, CELL = 350, 60                                      # of a module, of an exported cell
LONGER = {                                                 # what is longer, and why: at most five
    "nb09 794dcf10": "the whole loop, from fit to one_batch, is to be seen in one piece",
    "nb12c": "a loader and four callbacks, one for each rung of the ladder; float16 has steps of its own on a GPU",
}


def blocks(path) -> list[tuple[str, int]]:
    "Id and number of lines of each exported cell in a module."
    parts = re.split(r"^# %% \S+ #([\w-]+) \([0-9a-f]{8}\)\n", path.read_text(encoding="utf-8"), flags=re.M)
    return [(cell, len(code.strip("\n").split("\n"))) for cell, code in zip(parts[1::2], parts[2::2], strict=True)]


def test_the_exceptions_are_few_and_needed():
    assert len(LONGER) <= 5
    long = {p.stem for p in MODULES if len(p.read_text(encoding="utf-8").splitlines()) > LINES}
    long |= {f"{p.stem} {cell}" for p in MODULES for cell, n in blocks(p) if n > CELL}
    assert long == set(LONGER)


def test_learner_is_a_loop_that_a_reader_can_hold():
    text = (ROOT / "exp" / "nb09.py").read_text(encoding="utf-8")
    tree = ast.parse(text)
    learner = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Learner")
    docs = set()
    for n in ast.walk(learner):
        if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(n):
            docs |= set(range(n.body[0].lineno, n.body[0].end_lineno + 1))
    lines = text.split("\n")
    code = [i for i in range(learner.lineno, learner.end_lineno + 1) if i not in docs and lines[i - 1].strip()]
    assert len(code) <= 70


@each
def test_nothing_from_09_on_stands_on_the_outgrown_loop(path):
    if path.stem < "nb09":
        return
    found = re.findall(r"^\s*(?:from|import) exp\.(nb04|nb05b?)\b", path.read_text(encoding="utf-8"), re.M)
    assert not found


def test_no_path_is_bent():
    "Tests and benchmarks find exp/ and tools/ by configuration, not by changing sys.path."
    bent = []
    for p in (p for folder in ("tests", "benchmarks", "docs", "tools", "exp") for p in (ROOT / folder).rglob("*.py")):
        calls = [ast.unparse(n.func) for n in ast.walk(ast.parse(p.read_text("utf-8"))) if isinstance(n, ast.Call)]
        bent += [str(p.relative_to(ROOT))]*("sys.path.insert" in calls)
    assert not bent


def test_the_door_has_no_name_of_the_outgrown_chapters():
    import groundup
    assert {"TrainLearner", "train", "accuracy", "get_images"} <= set(groundup.__all__)
    homes = {n: getattr(getattr(groundup, n), "__module__", "") for n in groundup.__all__}
    assert homes["TrainLearner"] == "exp.nb09b" and homes["Callback"] == "exp.nb09"
    assert not [n for n, home in homes.items() if home in ("exp.nb04", "exp.nb05", "exp.nb05b")]
    assert not [n for n, m in groundup._module_of.items() if m.rpartition(".")[2] in ("nb04", "nb05", "nb05b")]
