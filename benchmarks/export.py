"""What exporting costs: the exporter beside a bare script that does nothing but join cells, on the real notebooks.

Run as `python benchmarks/export.py`. Whole processes, which take turns; each is compared with the bare script of its
turn, so that a busy moment of the machine hits both, and the median counts. The budget is 5 times the bare script; exit
status 1 when a row is over it.
"""
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "notebook2script.py"
BUDGET = 5

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


def export_table(repeats: int = 15) -> list[tuple[str, float, float, int]]:
    "Measures and prints; returns rows of what was run, median seconds, times the bare script, files written."
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        shutil.copytree(ROOT / "nbs", root / "nbs", ignore=lambda _, names: {n for n in names if n[-6:] != ".ipynb"})
        shutil.copy(ROOT / "settings.ini", root)
        (root / "bare.py").write_text(BARE, encoding="utf-8")
        notebooks = len(list((root / "nbs").iterdir()))
        took, written = measure(root, repeats)
    rows = [(what, median(t), median(a / b for a, b in zip(t, took["bare script"], strict=True)), written[what])
            for what, t in took.items()]
    print(f"Exporting the series, {notebooks} notebooks: whole process, median of {repeats}\n{machine()}")
    print(f"{'':24}{'ms':>6}{'× bare':>9}{'written':>9}")
    for what, seconds, times, n in rows:
        print(f"{what:24}{seconds * 1e3:6.0f}{times:9.1f}{n:9}" + ("" if times <= BUDGET else "   over budget"))
    return rows


def measure(root: Path, repeats: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    "Seconds of each run, and how many files the last one of each kind wrote."
    tool = [sys.executable, str(TOOL)]
    runs = {"bare script": [sys.executable, "bare.py"], "first export": tool, "export, nothing changed": tool,
            "--check": [*tool, "--check"]}
    took, written = {what: [] for what in runs}, dict.fromkeys(runs, 0)
    for _ in range(repeats):
        for what, command in runs.items():
            if what == "first export":
                for folder in "exp", "groundup":
                    shutil.rmtree(root / folder, ignore_errors=True)
            before, start = stamps(root), time.perf_counter()
            done = subprocess.run(command, cwd=root, capture_output=True, text=True)
            took[what].append(time.perf_counter() - start)
            if done.returncode:
                sys.exit(done.stdout + done.stderr)
            written[what] = len(stamps(root) - before)
    return took, written


def stamps(root: Path) -> set[tuple[Path, int]]:
    return {(p, p.stat().st_mtime_ns) for p in root.glob("*/*.py*")}


def machine() -> str:
    "The processor's name, the cores, the system."
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*: (.+)", cpuinfo.read_text(), re.M) if cpuinfo.exists() else []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(any(times > BUDGET for _, _, times, _ in export_table()))
