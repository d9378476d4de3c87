"""What the Learner costs: epochs with it beside the same epochs as a bare loop, in one process, taking turns.

Run as `python benchmarks/learner_overhead.py`. The budget is 3% over the bare loop at batch size 1024 and 10% at 64;
exit status 1 when a row is over it. What callbacks add that the bare loop has no counterpart of is shown, too.
"""
import gc
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from exp.nb03 import accuracy  # noqa: E402
from exp.nb06 import Lambda, default_device, flatten  # noqa: E402
from exp.nb08 import DataLoaders  # noqa: E402
from exp.nb08a import conv  # noqa: E402
from exp.nb09 import Accuracy, DeviceCB, Learner, MetricsCB, TrainCB, TrainLearner  # noqa: E402
from exp.nb10 import ActivationStats  # noqa: E402

BUDGET = {1024: 0.03, 64: 0.10}
BATCHES = {1024: 20, 64: 100}
LR = 0.1


def convnet(seed: int = 42) -> nn.Module:
    "The series' small net: `(n, 1, 28, 28)` -> `(n, 10)`."
    torch.manual_seed(seed)
    return nn.Sequential(conv(1, 8, ks=5), conv(8, 16), conv(16, 32), conv(32, 64), conv(64, 10, act=False),
                         Lambda(flatten))


def bare(batches: list, device: torch.device, metrics: bool):
    "A function that trains for one epoch without any framework."
    model = convnet().to(device)
    opt = torch.optim.SGD(model.parameters(), lr=LR)

    def epoch():
        loss_sum = acc_sum = n = 0
        model.train()
        for xb, yb in batches:
            xb, yb = xb.to(device), yb.to(device)
            preds = model(xb)
            loss = F.cross_entropy(preds, yb)
            if metrics:
                loss_sum += loss.detach() * len(xb)
                acc_sum += accuracy(preds.detach(), yb) * len(xb)
                n += len(xb)
            loss.backward()
            opt.step()
            opt.zero_grad()
        return (float(loss_sum) / n, float(acc_sum) / n) if metrics else None
    return epoch


def learned(batches: list, cls: type, *cbs):
    "A function that trains for one epoch with a learner of class `cls`."
    learn = cls(convnet(), DataLoaders(batches), F.cross_entropy, lr=LR, cbs=[DeviceCB(), *cbs])
    return lambda: learn.fit(1, valid=False)


def seconds(f) -> float:
    "How long one call of `f` takes."
    gc.collect()
    start = time.perf_counter()
    f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(bs: int, repeats: int) -> list[tuple[str, float, float, bool]]:
    "Rows of what was run, median seconds, median share above its own bare loop of the same round, has it a budget."
    device = default_device()
    batches = [(torch.randn(bs, 1, 28, 28), torch.randint(10, (bs,))) for _ in range(BATCHES[bs])]

    def mcb():
        return MetricsCB(Accuracy(), quiet=True)

    runs = {
        "bare loop": (bare(batches, device, False), None, False),
        "TrainLearner": (learned(batches, TrainLearner), "bare loop", True),
        "Learner, TrainCB": (learned(batches, Learner, TrainCB()), "bare loop", True),
        "bare loop, loss and accuracy": (bare(batches, device, True), None, False),
        "TrainLearner, MetricsCB": (learned(batches, TrainLearner, mcb()), "bare loop, loss and accuracy", True),
        "  … ActivationStats(), as it comes": (learned(batches, TrainLearner, mcb(), ActivationStats()),
                                               "bare loop, loss and accuracy", False),
        "  … ActivationStats(every=1)": (learned(batches, TrainLearner, mcb(), ActivationStats(every=1)),
                                         "bare loop, loss and accuracy", False)}
    took = {name: [] for name in runs}
    for r in range(repeats + 1):
        for name in (list(runs) if r % 2 else list(runs)[::-1]):        # turn about, first forwards, then backwards
            took[name].append(seconds(runs[name][0]))
    rows = []
    for name, (_, base, counts) in runs.items():
        t = took[name][1:]                                              # the first round warms up
        over = [a/b - 1 for a, b in zip(t, took[base][1:], strict=True)] if base else [0.]
        rows.append((name, statistics.median(t), statistics.median(over), counts))
    return rows


def main(repeats: int = 7) -> int:
    "Prints the table; 1 if the budget is exceeded."
    print(f"One epoch of the small convnet on {default_device().type}, median of {repeats} rounds, torch "
          f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    print(f"{'':38}{'bs':>5}{'ms a batch':>12}{'over bare':>11}{'budget':>9}")
    worst = 0
    for bs, budget in BUDGET.items():
        for name, t, over, counts in measure(bs, repeats):
            is_bare, bad = name.startswith("bare"), counts and over > budget
            print(f"{name:38}{bs:5}{t/BATCHES[bs]*1e3:12.3f}{'' if is_bare else f'{over:+.1%}':>11}"
                  f"{f'{budget:.0%}' if counts else '':>9}{'   over budget' if bad else ''}")
            worst = worst or bad
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
