"""What many workers cost and bring, measured here with one to four processes of one thread, beside what is promised.

Run as `python benchmarks/scale.py`, on a machine that does nothing else; `--quick` tries it out with small numbers, and
writes nothing. The rows go to `records/scale.csv`, which chapter 16 shows. Budgets: `AccelerateCB` at most 3% over a
bare loop with torch's `DistributedDataParallel`; two workers at least 1.7 times the images per second of one, for the
ResNet of 13 at 1024; a killed worker is back within 30 s. Exit status 1 when one is missed. At the end comes what the
formula of chapter 16 says of machines that are not here: each of those lines says that it is simulated.
"""
import csv
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timing import side_by_side
from torch.nn.parallel import DistributedDataParallel

from exp.nb00a import machine_name, write_file
from exp.nb08 import DataLoaders
from exp.nb09 import Callback
from exp.nb09b import TrainLearner
from exp.nb11 import init_weights
from exp.nb12c import TensorLoader
from exp.nb13 import get_resnet
from exp.nb13b import CheckpointCB
from exp.nb16 import AccelerateCB, Sharded, Workers

RECORD = Path(__file__).resolve().parents[1]/"records"/"scale.csv"
SIZES = [4**i*1024 for i in range(9)]                      # bytes, 1 kB to 64 MB


# -- what workers run

def all_reduce_times(sizes: list, repeats: int) -> list:
    "Median seconds of an all-reduce, for each of `sizes` in bytes."
    medians = []
    for n in sizes:
        x, took = torch.zeros(n//4), []
        for _ in range(repeats):
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(x)
            took.append(time.perf_counter() - start)
        medians.append(statistics.median(took))
    return medians


def loader(bs: int, n: int) -> TensorLoader:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (n, 28, 28), generator=g).to(torch.uint8)
    return TensorLoader(x, torch.randint(10, (n,), generator=g), bs, shuffle=True, normalize=(0.5, 0.3))


def resnet():
    torch.manual_seed(0)
    return get_resnet().apply(init_weights)


_KEPT = {}                                                 # what the rounds of one measurement share


def bare(bs: int, n: int) -> float:
    "Seconds of an epoch as in torch's own example: a model in DDP, its part of each batch, five lines."
    if "bare" not in _KEPT:
        model = resnet()
        opt = torch.optim.SGD(model.parameters(), 0.01)
        dl = Sharded(loader(bs, n), dist.get_rank(), dist.get_world_size(), least=2)
        _KEPT["bare"] = model, opt, dl
    model, opt, dl = _KEPT["bare"]
    model = DistributedDataParallel(model.train())         # anew, as a fit does
    dist.barrier()
    start = time.perf_counter()
    for xb, yb in dl:
        opt.zero_grad()
        F.cross_entropy(model(xb), yb).backward()
        opt.step()
    dist.barrier()
    return time.perf_counter() - start


class Timer(Callback):
    "The seconds of an epoch, without what is set up before it."
    def before_epoch(self, learn):
        dist.barrier()
        self.start = time.perf_counter()

    def after_epoch(self, learn):
        dist.barrier()
        self.seconds = time.perf_counter() - self.start


def learned(bs: int, n: int) -> float:
    "Seconds of an epoch with a learner and `AccelerateCB`."
    if "learned" not in _KEPT:
        timer = Timer()
        learn = TrainLearner(resnet(), DataLoaders(loader(bs, n)), F.cross_entropy, 0.01, [AccelerateCB(), timer])
        _KEPT["learned"] = learn, timer
    learn, timer = _KEPT["learned"]
    learn.fit(1, valid=False)
    return timer.seconds


def forget() -> None:
    "The next rounds begin with nets made anew: where memory lies makes a difference, too."
    _KEPT.clear()


# -- rows

def fit_line(sizes: list, seconds: list) -> tuple[float, float]:
    "Of `seconds = α + β·bytes`, with relative errors least."
    n, t = (torch.tensor(v, dtype=torch.float64) for v in (sizes, seconds))
    terms = torch.stack([torch.ones_like(n), n], 1)/t[:, None]
    alpha, beta = torch.linalg.lstsq(terms, torch.ones(len(n), 1, dtype=torch.float64)).solution.flatten().tolist()
    return max(alpha, 1e-9), max(beta, 1e-15)


def all_reduce_seconds(n_bytes: float, world: int, alpha: float, beta: float) -> float:
    "A ring: `2(world - 1)` steps of `alpha` seconds, with one part in `world` of the bytes each."
    return 2*(world - 1)*(alpha + n_bytes/world*beta)


def step_seconds(world: int, compute: float, n_bytes: float, alpha: float, beta: float, hidden: float = 0.5,
                 sharded: bool = False) -> float:
    "A step: sending can hide behind the share `hidden` of what is computed; sharding sends half as much again."
    sending = all_reduce_seconds(n_bytes, world, alpha, beta)*(1.5 if sharded else 1)
    return compute + max(0., sending - hidden*compute)


def interleaved(runs: dict, rounds: int) -> dict[str, list[float]]:
    "The seconds of each of `runs`, functions, taking turns; a first round warms up."
    took = {name: [] for name in runs}
    for r in range(rounds + 1):
        for name in list(runs)[::1 if r % 2 else -1]:
            took[name].append(runs[name]())
    return {name: seconds[1:] for name, seconds in took.items()}


def restart_seconds() -> float:
    "From the SIGKILL of a worker until the first step after it, under torchrun."
    root, folder = Path(__file__).resolve().parents[1], Path(tempfile.mkdtemp())
    env = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root/'benchmarks'}", "OMP_NUM_THREADS": "1",
                        "GROUNDUP_DEVICE": "cpu", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1",
               __file__, "--killed", str(folder)]
    try:
        subprocess.run(command, env=env, check=True, timeout=300, capture_output=True)
        killed, resumed = (float((folder/k).read_text()) for k in ("killed", "resumed"))
        return resumed - killed
    finally:
        shutil.rmtree(folder)


class Misfortune(Callback):
    "Kills worker 1 in its 10th batch, and notes when; notes the first step of the life after that."
    def __init__(self, folder: Path):
        self.folder, self.n = folder, 0

    def after_step(self, learn):
        self.n += 1
        again = os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
        if again and self.n == 1 and dist.get_rank() == 0:
            (self.folder/"resumed").write_text(str(time.time()))
        if not again and self.n == 10 and dist.get_rank() == 1:
            (self.folder/"killed").write_text(str(time.time()))
            os.kill(os.getpid(), 9)


def killed(folder: Path) -> None:
    cbs = [AccelerateCB(), CheckpointCB(folder/"fit.pt", every=4, resume=True), Misfortune(folder)]
    TrainLearner(resnet(), DataLoaders(loader(32, 640)), F.cross_entropy, 0.01, cbs).fit(1, valid=False)


def main(quick: bool = False) -> int:
    "Prints the table; 1 if a budget is missed."
    torch.set_num_threads(1)
    bs, batches, rounds, repeats = (64, 3, 2, 3) if quick else (1024, 4, 7, 15)
    rows, n = [], batches*bs

    def row(what: str, value: str, expected: str, bad: bool = False) -> None:
        rows.append({"what": what, "value": value, "expected": expected + " missed"*bad, "machine": machine_name()})
        print(f"{what:62}{value:>14}{rows[-1]['expected']:>28}", flush=True)

    crews = {w: Workers(w, timeout=900) for w in (1, 2, 4)}
    lines = {}
    for w in (2, 4):
        seconds = [max(t) for t in zip(*crews[w].run(all_reduce_times, SIZES, repeats), strict=True)]
        a, b = fit_line(SIZES, seconds)
        lines[w] = a/(2*(w - 1)), b*w/(2*(w - 1))          # of one step of a ring, and of one byte to the neighbour
        row(f"all-reduce, {w} workers: α of a step, bytes a second", f"{lines[w][0]*1e6:.0f} µs",
            f"{1e-9/lines[w][1]:.2f} GB/s")

    def pair():
        crews[2].run(forget)
        return (lambda: max(crews[2].run(learned, bs, n))), (lambda: max(crews[2].run(bare, bs, n)))

    over = side_by_side(pair, rounds//2, 3, 0.03, clock=lambda f: f())[2]
    row(f"AccelerateCB over a bare DDP loop, ResNet at {bs}", f"{over:+.1%}", "at most 3%", over > 0.03)

    took = interleaved({w: (lambda w=w: max(crews[w].run(learned, bs, n))) for w in (1, 2, 4)}, rounds)
    compute, size = statistics.median(took[1])/batches, sum(p.numel() for p in resnet().parameters())*4
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for w in (1, 2, 4):
        step = statistics.median(took[w])/batches
        share = compute/min(w, cores)                      # four workers on two cores compute no faster than two
        said = step_seconds(w, share, size, *lines.get(w, (0, 0)))
        row(f"a step of the ResNet, {w} worker{'s'*(w > 1)} on {cores} cores", f"{step*1e3:.0f} ms",
            f"formula {said*1e3:.0f} ms")
    gain = statistics.median(a/b for a, b in zip(took[1], took[2], strict=True))
    row(f"images per second, two workers over one, at {bs}", f"{gain:.2f}×", "at least 1.7×", gain < 1.7)
    for crew in crews.values():
        crew.close()
    back = restart_seconds()
    row("a killed worker's fit goes on after", f"{back:.0f} s", "at most 30 s", back > 30)
    if not quick:
        csv.DictWriter(out := io.StringIO(), list(rows[0]), lineterminator="\n").writeheader()
        csv.DictWriter(out, list(rows[0]), lineterminator="\n").writerows(rows)
        write_file(RECORD, out.getvalue())
    simulate(compute, size, lines[2])
    return int(any(r["expected"].endswith("missed") for r in rows))


def simulate(compute: float, size: float, here: tuple[float, float]) -> None:
    "Step time and efficiency on paper, 1 to 4,096 workers; where the numbers are from, chapter 16 says."
    links = {"gloo, here": here, "Ethernet 100 Gb/s": (5.1e-6, 1/12.5e9), "InfiniBand 200 Gb/s": (9.6e-6, 1/25e9),
             "NVLink, A100": (3.4e-6, 1/235e9)}
    seven = 6*7e9*4096/(0.4*312e12)
    jobs = {"ResNet, this processor": (compute, size, False), "ResNet, A100 (30 ms assumed)": (0.03, size, False),
            "7 billion, data parallel": (seven, 14e9, False), "7 billion, sharded": (seven, 14e9, True)}
    worlds = [4**i for i in range(7)]
    print(f"\nSIMULATED: share of time spent computing{'':13}" + "".join(f"{w:>8,}" for w in worlds))
    for name, (t, n_bytes, sharded) in jobs.items():
        for link, (a, b) in links.items():
            shares = [t/step_seconds(w, t, n_bytes, a, b, sharded=sharded) for w in worlds]
            print(f"simulated  {name:30}{link:20}" + "".join(f"{s:8.0%}" for s in shares))


if __name__ == "__main__":
    if "--killed" in sys.argv:
        killed(Path(sys.argv[-1]))
    else:
        sys.exit(main("--quick" in sys.argv))
