"""What a step costs: our optimisers beside the library's, single-tensor, foreach and fused, taking turns.

Run as `python benchmarks/optimizers.py`. The parameters are those of a ResNet for 28x28 images, 1.2 million in some 60
tensors. The budget is 1.5 times the library's single-tensor version, which is what ours are: a loop over tensors. Exit
status 1 when a row is over it.
"""
import os
import platform
import statistics
import sys
import time
from functools import partial

import torch
from torch import nn, optim

from exp.nb00a import machine_name
from exp.nb06 import default_device
from exp.nb12 import LAMB, SGD, Adam, Momentum, RMSProp

BUDGET = 1.5
WIDTHS = (1, 8, 16, 32, 64, 128, 256)
KINDS = {"single-tensor": dict(foreach=False), "foreach": dict(foreach=True), "fused": dict(fused=True)}
BETAS = dict(betas=(0.9, 0.99), eps=1e-5)
PAIRS = {"SGD": (partial(SGD, lr=0.01), partial(optim.SGD, lr=0.01)),
         "SGD, decay": (partial(SGD, lr=0.01, wd=0.01), partial(optim.SGD, lr=0.01, weight_decay=0.01)),
         "Momentum": (partial(Momentum, lr=0.1), partial(optim.SGD, lr=0.01, momentum=0.9)),
         "RMSProp": (partial(RMSProp, lr=1e-4), partial(optim.RMSprop, lr=1e-4, eps=1e-5)),
         "Adam": (partial(Adam, lr=1e-4), partial(optim.Adam, lr=1e-4, **BETAS)),
         "Adam, decay": (partial(Adam, lr=1e-4, wd=0.01), partial(optim.AdamW, lr=1e-4, weight_decay=0.01, **BETAS)),
         "LAMB, to AdamW": (partial(LAMB, lr=1e-4, wd=0.01), partial(optim.AdamW, lr=1e-4, weight_decay=0.01, **BETAS))}


def parameters(device: torch.device) -> list[nn.Parameter]:
    "Weights and gradients as a residual net of six stages has them: convolutions, norms, 1x1 paths, a linear layer."
    torch.manual_seed(42)
    shapes = []
    for ni, nf in zip(WIDTHS[:-1], WIDTHS[1:], strict=True):
        shapes += [(nf, ni, 3, 3), (nf,), (nf,), (nf, nf, 3, 3), (nf,), (nf,), (nf, ni, 1, 1), (nf,), (nf,)]
    shapes += [(10, WIDTHS[-1]), (10,)]
    params = [nn.Parameter(torch.randn(s, device=device)*0.1) for s in shapes]
    for p in params:
        p.grad = torch.randn_like(p)*0.01
    return params


def seconds(opt, steps: int) -> float:
    "How long a step takes, the mean of `steps`."
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        opt.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start)/steps


def versions(name: str, device: torch.device) -> dict:
    "Ours, and the library's versions that this device has, each with parameters of its own."
    ours, theirs = PAIRS[name]
    opts = {"ours": ours(parameters(device))}
    for kind, switch in KINDS.items():
        try:
            opt = theirs(parameters(device), **switch)
            opt.step()
        except (RuntimeError, TypeError):                               # no such version
            continue
        opts[kind] = opt
    return opts


def measure(name: str, device: torch.device, repeats: int, steps: int) -> tuple[dict[str, float], float]:
    "Median seconds of a step for each version, and the median ratio of ours to single-tensor right beside it."
    opts = versions(name, device)
    took = {kind: [] for kind in opts}
    for r in range(repeats + 1):
        for kind in list(opts)[::1 if r % 2 else -1]:
            took[kind].append(seconds(opts[kind], steps))
    took = {kind: ts[1:] for kind, ts in took.items()}                  # the first round warms up
    ratio = statistics.median(a/b for a, b in zip(took["ours"], took["single-tensor"], strict=True))
    return {kind: statistics.median(ts) for kind, ts in took.items()}, ratio


def main(repeats: int = 21, steps: int = 10) -> int:
    "Prints the table; 1 if a row is over the budget."
    device = default_device()
    params = parameters(device)
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"One step for {sum(p.numel() for p in params):,} parameters in {len(params)} tensors, milliseconds, median "
          f"of {repeats} rounds of {steps}\n{device.type}: {machine_name(device)}{load}, torch "
          f"{torch.__version__}, {torch.get_num_threads()} threads, Python {platform.python_version()}\n")
    print(f"{'':16}{'ours':>8}" + "".join(f"{kind:>15}" for kind in KINDS) + f"{'ours/single':>13}{'budget':>8}")
    worst = 0
    for name in PAIRS:
        took, ratio = measure(name, device, repeats, steps)
        cells = "".join(f"{took[kind]*1e3:15.3f}" if kind in took else f"{'-':>15}" for kind in KINDS)
        held = not name.startswith("LAMB")                              # which has no twin: it computes two norms more
        bad = held and ratio > BUDGET
        print(f"{name:16}{took['ours']*1e3:8.3f}{cells}{ratio:13.2f}{BUDGET if held else '':>8}"
              f"{'   over budget' if bad else ''}")
        worst = worst or bad
    return int(worst)


if __name__ == "__main__":
    sys.exit(main())
