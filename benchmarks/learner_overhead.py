"""What the Learner costs: epochs with it beside the same epochs as a bare loop, in one process, taking turns.

Run as `python benchmarks/learner_overhead.py`. The budget is 3% over the bare loop at batch size 1024 and 10% at 64;
exit status 1 when a row is over it. With `MetricsCB` the bare loop computes loss and accuracy, too; what
`ActivationStats` costs on top is shown, and has its budget of 20% at batch size 1024.
"""
import statistics
import sys

import torch
import torch.nn.functional as F
from timing import seconds
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


def pairs_of(batches: list, budget: float | None, stats_budget: float | None) -> list[tuple]:
    "What is compared: a name, a learner's epoch, the bare loop's, and the budget; with nets made anew."
    device = default_device()

    def mcb():
        return MetricsCB(Accuracy(), quiet=True)

    plain, full = (bare(batches, device, metrics) for metrics in (False, True))
    return [("TrainLearner", learned(batches, TrainLearner), plain, budget),
            ("Learner, TrainCB", learned(batches, Learner, TrainCB()), plain, budget),
            ("TrainLearner, MetricsCB", learned(batches, TrainLearner, mcb()), full, budget),
            ("  … and ActivationStats()", learned(batches, TrainLearner, mcb(), ActivationStats()), full, stats_budget),
            ("  … and ActivationStats(every=1)", learned(batches, TrainLearner, mcb(), ActivationStats(every=1)), full,
             None)]


def measure(bs: int, each: int) -> list[tuple[str, float, float, float, float | None]]:
    """Rows: what was run, median seconds, those of the bare loop beside it, median share above it, its budget.

    The same nets run `each` rounds, then they are made anew.
    """
    batches = [(torch.randn(bs, 1, 28, 28), torch.randint(10, (bs,))) for _ in range(BATCHES[bs])]
    took: dict[str, list[list[float]]] = {}
    for _ in range(FRESH):                                              # where memory lies makes a difference, too
        runs = pairs_of(batches, BUDGET.get(bs), STATS_BUDGET.get(bs))
        for r in range(each + 1):
            for name, run, base, _ in runs:                             # each right beside its bare loop, turn about
                pair = [seconds(f) for f in ((run, base) if r % 2 else (base, run))]
                if r:                                                   # the first round warms up
                    took.setdefault(name, []).append(pair if r % 2 else pair[::-1])
    rows = []
    for name, _, _, limit in runs:
        t, t_bare = (statistics.median(ts) for ts in zip(*took[name], strict=True))
        rows.append((name, t, t_bare, statistics.median(a/b - 1 for a, b in took[name]), limit))
    return rows


def main(each: int = 6) -> int:
    "Prints the table; 1 if the budget is exceeded."
    print(f"One epoch of the small convnet on {default_device().type}, median of {each*FRESH} rounds, torch "
          f"{torch.__version__}, {machine_name()}")
    print(f"{'':36}{'bs':>5}{'ms a batch':>12}{'bare loop':>11}{'over it':>9}{'budget':>9}")
    worst = 0
    for bs in BUDGET:
        for name, t, t_bare, over, limit in measure(bs, each):
            bad = limit is not None and over > limit
            print(f"{name:36}{bs:5}{t/BATCHES[bs]*1e3:12.3f}{t_bare/BATCHES[bs]*1e3:11.3f}{f'{over:+.1%}':>9}"
                  f"{'' if limit is None else f'{limit:.0%}':>9}{'   over budget' if bad else ''}")
            worst = worst or bad
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
