"""What waiting threads and small pages cost: an epoch with torch's threads spinning, sleeping, something between, or
one, and with memory in small pages, alone and beside another job.

Run as `python benchmarks/threads.py`, on a machine that does nothing else. OpenMP's threads wait for their next work
either by looking again and again, which keeps a core busy, or asleep (`OMP_WAIT_POLICY=PASSIVE`), from which it takes
time to wake, or they look for a moment and then sleep (with `GOMP_SPINCOUNT`, too). Large tensors may lie in pages of
2 MB, where Linux has them (`THP_MEM_ALLOC_ENABLE=1`); then addresses are found sooner. `exp` and the runner choose a
moment and large pages, unless you have chosen. Whole processes, which take turns; each ratio is within a round, and the
median counts. Exit status 1 when the library's choice costs more than 5% alone.
"""
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
WAYS = {"spinning": {"OMP_WAIT_POLICY": "ACTIVE"}, "as the library": {}, "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
        "one thread": {"OMP_NUM_THREADS": "1"}, "small pages": {"THP_MEM_ALLOC_ENABLE": "0"}}
ALONE, BESIDE, BUDGET = 9, 3, 1.05                         # rounds; a process differs from the next by 10%
EPOCH = """
import time
import exp
import torch
import torch.nn.functional as F
from exp.nb00c import toy_images
from exp.nb09b import TrainLearner
from exp.nb12c import fast_dls
from exp.nb13 import get_resnet
learn = TrainLearner(get_resnet(), fast_dls(toy_images("mnist", 1024, 64), 256, "cpu"), F.cross_entropy)
while True:
    start = time.perf_counter()
    learn.fit(1, valid=False)
    print(time.perf_counter() - start, flush=True)
"""


def process(way: str) -> subprocess.Popen:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "THP_"))}
    env |= {"PYTHONPATH": str(ROOT)} | WAYS[way]
    return subprocess.Popen([sys.executable, "-c", EPOCH], env=env, stdout=subprocess.PIPE, text=True)


def seconds(way: str, beside: bool) -> float:
    "Of the second epoch of three in a fresh process; with `beside`, another one of the same kind trains, too."
    jobs = [process(way) for _ in range(1 + beside)]
    try:
        for job in jobs:
            job.stdout.readline()                          # the first epoch, when caches and threads are made
        return median(float(jobs[0].stdout.readline()) for _ in range(3))
    finally:
        for job in jobs:
            job.kill()
            job.wait()


def main() -> int:
    ways = list(WAYS)
    alone = [{way: seconds(way, False) for way in ways[i % len(ways):] + ways[:i % len(ways)]} for i in range(ALONE)]
    beside = [{way: seconds(way, True) for way in ways} for _ in range(BESIDE)]
    print(f"{os.cpu_count()} cores; {time.strftime('%Y-%m-%d')}; median of {ALONE} rounds alone, {BESIDE} beside\n")
    print(f"{'threads':15} {'alone, s':>9} {'beside another, s':>18} {'alone, against spinning':>24}")
    for way in WAYS:
        ratio = median(r[way] / r["spinning"] for r in alone)
        print(f"{way:15} {median(r[way] for r in alone):9.2f} {median(r[way] for r in beside):18.2f} {ratio:24.2f}")
        if way == "as the library":
            ok = ratio <= BUDGET
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
