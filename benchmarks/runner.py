"""What the runner costs, beside `jupyter execute` on the same notebooks.

Run as `python benchmarks/runner.py [REPETITIONS]`. Exit status 1 when a trivial notebook takes more than 1.5 times as
long, or when one of many runs with eight workers failed for no reason.
"""
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from exp.nb00a import machine_name

ROOT = Path(__file__).resolve().parent.parent
BUDGET = 1.5                                               # times what `jupyter execute` takes
RUNNER = ROOT / "tools" / "run_notebook.py"


def make(folder: Path, name: str, source: str) -> str:
    "A notebook of one cell."
    cell = {"cell_type": "code", "id": "c0", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
    spec = {"display_name": "python3", "language": "python", "name": "python3"}
    (folder / name).write_text(json.dumps({"cells": [cell], "metadata": {"kernelspec": spec}, "nbformat": 4,
                                           "nbformat_minor": 5}))
    return name


def seconds(command: list, folder: Path) -> tuple[float, str]:
    "Wall time of a whole process, and what it said; raises when it fails."
    start = time.perf_counter()
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    return time.perf_counter() - start, done.stdout


def main(repetitions: int = 10, trials: int = 7) -> int:
    "Prints the table: a trivial notebook, eight that sleep, and eight workers over and over; 1 if it is over budget."
    ours, theirs = [sys.executable, RUNNER], [sys.executable, "-m", "nbclient.cli"]
    jupyter = Path(sys.executable).with_name("jupyter" + (".exe" if os.name == "nt" else ""))
    theirs = [jupyter, "execute"] if jupyter.exists() else theirs
    rows = []
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        one = make(folder, "trivial.ipynb", "1 + 1")
        times = [(seconds([*ours, one], folder)[0], seconds([*theirs, one], folder)[0]) for _ in range(trials)]
        a, b = (statistics.median(t) for t in zip(*times, strict=True))
        rows.append(("a trivial notebook, whole process", f"{a:.2f} s", f"{b:.2f} s with jupyter execute",
                     f"{a / b:.2f}x" + "   over budget" * (a / b > BUDGET)))
        eight = [make(folder, f"sleep{i}.ipynb", "import time\ntime.sleep(2)") for i in range(8)]
        rows.append(("eight that sleep 2 s, two workers",
                     f"{seconds([*ours, *eight, '--workers', 2], folder)[0]:.2f} s",
                     "8 s is the least possible", ""))
        eight = [make(folder, f"pid{i}.ipynb", "import os\nos.getpid()") for i in range(8)]
        failures, times = 0, []
        for _ in range(repetitions):
            try:
                times.append(seconds([*ours, *eight, "--workers", 8], folder)[0])
            except RuntimeError as e:
                failures += 1
                print(e, file=sys.stderr)
        rows.append((f"eight notebooks, eight workers, {repetitions} times", f"{failures} failures",
                     f"{statistics.median(times):.2f} s each time" if times else "", ""))
    print(f"{platform.platform()}, {machine_name()}, Python {platform.python_version()}")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip())
    return int(failures > 0 or a / b > BUDGET)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
