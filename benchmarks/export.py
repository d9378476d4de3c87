"""What exporting costs: the exporter's whole process beside a bare script that only reads JSON and joins cells.

Run as `python benchmarks/export.py`. The budget is 5 times the bare script, for exporting as for `--check`.
"""
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent / "tools" / "notebook2script.py"
NOTEBOOKS, CELLS, BUDGET = 20, 60, 5

BARE = '''\
"""The least that exports notebooks: no checks, no protection, one regular expression."""
import json
import re
import sys
from pathlib import Path

MARK = re.compile(r"\\s*#\\s*\\|?\\s*export\\s*\\n", re.I)
NAME = re.compile(r"^(?:def|class)\\s+([A-Za-z]\\w*)|^([A-Za-z]\\w*)\\s*=", re.M)


def code_of(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        source = "".join(cell["source"])
        mark = MARK.match(source)
        if cell["cell_type"] == "code" and mark:
            yield cell["id"], source[mark.end():]


def names_in(code):
    return sorted({a or b for a, b in NAME.findall(code)})


def module_of(path):
    blocks = [f"# %% {path.name} {id}\\n{code}" for id, code in code_of(path)]
    body = "\\n\\n\\n".join(blocks)
    return f"# Generated from {path}\\n\\n__all__ = {names_in(body)}\\n\\n\\n{body}\\n"


def main():
    lib = Path("bare")
    lib.mkdir(exist_ok=True)
    for path in sorted(Path("nbs").glob("*.ipynb")):
        number = path.stem.split("_")[0]
        target = lib / f"nb{number}.py"
        target.write_text(module_of(path), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
'''

FUNCTION = '''\
#export
def f{i}(x: int, *args: int, scale: float = {i}.5) -> float:
    "Adds up all arguments that are larger than {i}, scaled. Raises `ValueError` where there is none."
    found = [a for a in (x, *args) if a > {i}]
    if not found:
        raise ValueError("none of " + ", ".join(map(str, (x, *args))) + " is larger than {i}")
    return scale * sum(found)
'''


def make_notebook(path: Path, seed: int) -> None:
    "A chapter as ours are: a third prose, a quarter exported, outputs with text and a few pictures."
    rnd, cells = random.Random(seed), []
    for i in range(CELLS):
        kind, shared = ("markdown", "code", "export", "code")[i % 4], {"id": f"c{seed:02}{i:06}", "metadata": {}}
        if kind == "markdown":
            text = "\n".join("Why the next cell does what it does, in a few plain words." for _ in range(6))
            cells.append({"cell_type": "markdown", **shared, "source": text.splitlines(True)})
            continue
        plain = f"x = [{i}] * 3\nprint(sum(x), len(x))\nassert len(x) == 3"
        source = FUNCTION.format(i=i) if kind == "export" else plain
        picture = {"output_type": "display_data", "metadata": {}, "data": {"image/png": rnd.randbytes(10_000).hex()}}
        outputs = [] if kind == "export" else [{"output_type": "stream", "name": "stdout", "text": [f"{i * 3} 3\n"]}]
        cells.append({"cell_type": "code", "execution_count": None, **shared, "source": source.splitlines(True),
                      "outputs": outputs + [picture] * (i % 12 == 1)})
    nb = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(nb, indent=1), encoding="utf-8")


def export_table(repeats: int = 9) -> list[tuple[str, float, float, int]]:
    "Measures and prints; returns rows of what was run, median seconds, times the bare script, files written."
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        (root / "nbs").mkdir()
        (root / "settings.ini").write_text("[DEFAULT]\n")
        (root / "bare.py").write_text(BARE)
        for i in range(NOTEBOOKS):
            make_notebook(root / "nbs" / f"{i:02}_chapter.ipynb", i)
        took, written = measure(root, repeats)
    bare = statistics.median(took["bare script"])
    rows = [(what, statistics.median(t), statistics.median(t) / bare, written[what]) for what, t in took.items()]
    print(f"Exporting {NOTEBOOKS} notebooks of {CELLS} cells, whole process, median of {repeats}")
    print(f"{'':34}{'ms':>6}{'× bare':>9}{'written':>9}")
    for what, seconds, times, n in rows:
        print(f"{what:34}{seconds * 1e3:6.0f}{times:9.1f}{n:9}" + ("" if times <= BUDGET else "   over budget"))
    return rows


def measure(root: Path, repeats: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    "Seconds of each run, the runs taking turns so that a busy moment of the machine hits all; files they wrote."
    tool = [sys.executable, str(TOOL)]
    runs = {"bare script": [sys.executable, "bare.py"], "first export": tool, "export, nothing changed": tool,
            "--check": [*tool, "--check"]}
    took, written = {what: [] for what in runs}, dict.fromkeys(runs, 0)
    for _ in range(repeats):
        for what, command in runs.items():
            if what == "first export":
                for module in (root / "exp").glob("*.py"):
                    module.unlink()
            before, start = stamps(root), time.perf_counter()
            subprocess.run(command, cwd=root, check=True, stdout=subprocess.DEVNULL)
            took[what].append(time.perf_counter() - start)
            written[what] = len(stamps(root) - before)
    return took, written


def stamps(root: Path) -> set[tuple[Path, int]]:
    return {(p, p.stat().st_mtime_ns) for p in root.glob("*/*.py")}


if __name__ == "__main__":
    export_table()
