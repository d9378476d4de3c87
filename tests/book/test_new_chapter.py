"""`make new` makes a chapter that passes every check as it is."""
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


def run(*args, cwd) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    "The project without its environment, where a chapter can be added."
    copy = tmp_path_factory.mktemp("house") / "groundup"
    left = shutil.ignore_patterns(".git", ".venv*", "_out", "*.egg-info", "__pycache__", "build", ".hypothesis",
                                  ".*_cache")              # which others may be writing to
    shutil.copytree(ROOT, copy, ignore=left)
    return copy


def test_a_new_chapter_passes_every_check(house):
    made = run("docs/new_chapter.py", "98_a_new_one", cwd=house)
    assert made.returncode == 0, made.stderr
    for step in (["tools/notebook2script.py"], ["tools/run_notebook.py", "nbs/98_a_new_one.ipynb", "--save"],
                 ["tools/notebook2script.py", "--check"], ["-m", "ruff", "check", "-q", "."],
                 ["-m", "pytest", "-q", "tests/book/test_notebooks.py", "tests/book/test_house.py", "-k",
                  "98_a_new_one or nb98 or readme_maps or exceptions"]):
        done = run(*step, cwd=house)
        assert done.returncode == 0, (step, done.stdout + done.stderr)
    assert "98 A new one" in (house / "nbs" / "18_showcase.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize("name, said", [("", "19_name"), ("new", "19_name"), ("18_again", "there is a chapter 18"),
                                        ("01z_early", "the last chapter is"), ("../20_x", "19_name")])
def test_names_that_are_no_chapter_are_refused(name, said):
    before = sorted((ROOT / "nbs").iterdir())
    done = run("docs/new_chapter.py", name, cwd=ROOT)
    assert done.returncode == 1 and said in done.stderr and sorted((ROOT / "nbs").iterdir()) == before
