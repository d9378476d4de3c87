"""What the Learner costs: epochs with it beside the same epochs as a bare loop, in one process, taking turns.

Run as `python benchmarks/learner_overhead.py`. The budget is 3% over the bare loop at batch size 1024 and 10% at 64;
exit status 1 when a row is over it. With `MetricsCB` the bare loop computes loss and accuracy, too; what
`ActivationStats` costs on top is shown, and has its budget of 20% at batch size 1024.
"""
import sys
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from timing import side_by_side
from torch import nn

from exp.nb00a import machine_name
from exp.nb03 import accuracy
from exp.nb06 import Lambda, default_device, flatten
from exp.nb08 import DataLoaders
from exp.nb08a import conv
from exp.nb09 import Accuracy, DeviceCB, Learner, MetricsCB, TrainCB
from exp.nb09b import TrainLearner
from exp.nb10 import ActivationStats

BUDGET = {1024: 0.03, 64: 0.10}
STATS_BUDGET = {1024: 0.20}
BATCHES = {1024: 10, 64: 100}
LR, FRESH = 0.1, 4                                          # nets are made anew so often


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


def compared(bs: int) -> list[tuple]:
    "A name, what makes a learner's epoch and the bare loop beside it, and the budget."
    batches = [(torch.randn(bs, 1, 28, 28), torch.randint(10, (bs,))) for _ in range(BATCHES[bs])]
    device, budget = default_device(), BUDGET[bs]

    def mcb():
        return MetricsCB(Accuracy(), quiet=True)

    def row(name: str, cls: type, budget: float | None, *cbs: Callable, metrics: bool = True) -> tuple:
        return name, lambda: (learned(batches, cls, *(f() for f in cbs)), bare(batches, device, metrics)), budget

    return [row("TrainLearner", TrainLearner, budget, metrics=False),
            row("Learner, TrainCB", Learner, budget, TrainCB, metrics=False),
            row("TrainLearner, MetricsCB", TrainLearner, budget, mcb),
            row("  … and ActivationStats()", TrainLearner, STATS_BUDGET.get(bs), mcb, ActivationStats),
            row("  … and ActivationStats(every=1)", TrainLearner, None, mcb, partial(ActivationStats, every=1))]


def main(each: int = 6) -> int:
    "Prints the table; 1 if the budget is exceeded."
    print(f"One epoch of the small convnet on {default_device().type}, least of {each*FRESH} rounds or more, torch "
          f"{torch.__version__}, {machine_name()}")
    print(f"{'':36}{'bs':>5}{'ms a batch':>12}{'bare loop':>11}{'over it':>9}{'budget':>9}{'rounds':>8}")
    worst = 0
    for bs, n in BATCHES.items():
        for name, make, limit in compared(bs):
            t, t_bare, over, rounds = side_by_side(make, each, FRESH, limit)
            bad = limit is not None and over > limit
            print(f"{name:36}{bs:5}{t/n*1e3:12.3f}{t_bare/n*1e3:11.3f}{f'{over:+.1%}':>9}"
                  f"{'' if limit is None else f'{limit:.0%}':>9}{rounds:8}{'   over budget'*bad}", flush=True)
            worst = worst or bad
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
