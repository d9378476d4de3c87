"""The skeleton of a chapter, which passes every check: `make new NB=19_name`, or `docs/new_chapter.py 19_name`."""
import json
import re
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKELETON = """
# {title}

What question does this chapter answer? A reader of the lower chapters understands it, and sees here what the answer
will look like.
---
from exp.nb00 import test_eq
---
## The simplest thing that could work

The naive version comes first. It doubles a number with a loop.
---
def double(x):
    total = 0
    for _ in range(2): total += x
    return total
---
test_eq(double(3), 6)
double(3)
---
What is wrong with it is shown, and the version that cures just that comes next.
---
def double(x): return 2 * x

test_eq(double(3), 6)
---
## What we have now

Three sentences: what was built, what it unlocks, and the next question.

### Experiments

- What would a reader change first?
---
## The contract

Refusals, round trips and odd inputs are tested here.
---
test_eq([], [])
---
{links}
"""
CODE = ("from", "test_eq", "def")                              # how those of its cells begin that are code


def make(name: str) -> Path:
    "Write nbs/<name>.ipynb; it is linked from the chapter before it and from the README's map."
    if not re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+", name):
        raise SystemExit(f"NB must be a number and a name, like 19_name: got {name!r}")
    path, books = ROOT / "nbs" / f"{name}.ipynb", sorted((ROOT / "nbs").glob("[0-9]*.ipynb"))
    number, title = name.split("_")[0], name.split("_", 1)[1].replace("_", " ").capitalize()
    if [p for p in books if p.stem.split("_")[0] == number]:
        raise SystemExit(f"there is a chapter {number} already")
    if path < books[-1]:
        raise SystemExit(f"the last chapter is {books[-1].stem}: choose a higher number")
    before = json.loads(books[-1].read_text(encoding="utf-8"))
    first = next("".join(c["source"]) for c in before["cells"] if c["cell_type"] == "markdown")
    called = f"{books[-1].stem.split('_')[0]} {first.splitlines()[0].removeprefix('# ')}"
    links = f"**Previous:** [{called}]({books[-1].name})"
    cells = [json.loads(books[0].read_text(encoding="utf-8"))["cells"][0] | {"id": uuid.uuid4().hex[:8]}]
    for text in SKELETON.strip().split("\n---\n"):
        code = {"execution_count": None, "outputs": []} if text.startswith(CODE) else {}
        cells.append({"cell_type": "code" if code else "markdown", "id": uuid.uuid4().hex[:8], "metadata": {},
                      "source": text.format(title=title, links=links).splitlines(keepends=True)} | code)
    cells[-2]["metadata"] = {"tags": ["hide-input"]}
    kernel = {"kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}}
    source = "".join(before["cells"][-1]["source"]) + f" · **Next:** [{number} {title}]({path.name})"
    before["cells"][-1]["source"] = source.splitlines(keepends=True)
    readme = ROOT / "README.md"
    rows = re.findall(r"^\| \[\d.*\|$", text := readme.read_text(encoding="utf-8"), re.M)
    if not rows:
        raise SystemExit("README.md has no table of chapters to put this one into")
    save(path, {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5})
    save(books[-1], before)
    row = f"| [{number}](nbs/{path.name}) | {title} | what is built there |"
    readme.write_text(text.replace(rows[-1], f"{rows[-1]}\n{row}"), encoding="utf-8")
    return path


def save(path: Path, notebook: dict) -> None:
    path.write_text(json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    print(make(*sys.argv[1:2] or [""]), "and links to it are made; then: make export, make test")
