"""Every number that needs a GPU, in one command and at most 8 minutes: `make gpu`, on a machine with a CUDA device.

Run as `python benchmarks/gpu.py [SECONDS]`. The parts run one after the other, and each may take
what is left. Executed chapters go to `_out/gpu/` as pages, and what a part printed to `records/gpu.csv`, a row for each
line: part, line, card, commit, day. What there was no time for is named. Exit status 1 when a part failed, 2 where
there is no CUDA device.
"""
import csv
import datetime
import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from exp.nb00a import write_file

ROOT = Path(__file__).resolve().parent.parent
RECORD, PAGES = ROOT / "records" / "gpu.csv", ROOT / "_out" / "gpu"
COLUMNS = ["part", "line", "card", "commit", "day"]
EPOCH, LAUNCH = ["exp.nb18", "--epochs", "1", "--report", "none"], ["-m", "torch.distributed.run", "--standalone"]
RUNNER, RECORDS = "tools/run_notebook.py", "benchmarks/records.py"
PARTS = {                                                  # name: the least it needs in seconds, what is run
    "the learner's overhead": (20, ["benchmarks/learner_overhead.py"]),
    "the ladder of chapter 12c": (30, ["benchmarks/speed_ladder.py"]),
    "an epoch alone": (20, ["-m", *EPOCH]),
    "an epoch in DDP on one device": (30, [*LAUNCH, "-m", *EPOCH]),
    "chapters with #cuda cells": (60, [RUNNER, "--device", "cuda", "--workers", "1", "--html", "_out/gpu"]),
    "the wide recipe of chapter 15": (120, [RECORDS, "--run", "wide", "--seeds", "0", "--split", "all"]),
}


def marked() -> list[str]:
    "Notebooks that have a cell with the mark #cuda."
    return [str(p) for p in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")) if '"#cuda' in p.read_text(encoding="utf-8")]


def run(command: list[str], left: float) -> tuple[str, str]:
    "Run a part for at most `left` seconds: what it printed, and how it ended."
    env = os.environ | {"GROUNDUP_DEVICE": "cuda", "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=left)
    except subprocess.TimeoutExpired as e:
        return (e.stdout or b"").decode(errors="replace"), "stopped: no time left"
    return done.stdout, f"exit status {done.returncode}" if done.returncode else "ok"


def keep(rows: list[list[str]]) -> None:
    "Write the rows; those of an earlier run of the same parts on the same card are replaced."
    old = list(csv.reader(io.StringIO(RECORD.read_text(encoding="utf-8"))))[1:] if RECORD.exists() else []
    new, text = {(r[0], r[2]) for r in rows}, io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *(r for r in old if (r[0], r[2]) not in new), *rows])
    write_file(RECORD, text.getvalue())


def main(seconds: float = 480) -> int:
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was run")
        return 2
    PAGES.mkdir(parents=True, exist_ok=True)
    git = [shutil.which("git") or "git", "rev-parse", "--short=10", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    end, card, failed = time.perf_counter() + seconds, torch.cuda.get_device_name(), False
    for name, (least, command) in PARTS.items():
        start, said = time.perf_counter(), ""
        status = "left out: no time"
        if end - start >= least:
            said, status = run(command + (marked() if RUNNER in command else []), end - start)
            keep([[name, line, card, commit, f"{datetime.date.today()}"] for line in said.splitlines() if line.strip()])
        failed |= status.startswith("exit")
        print(f"{name:32}{status:24}{time.perf_counter() - start:6.1f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
