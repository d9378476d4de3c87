"""The ladder of chapter 12c with the Learner beside a bare loop that has the same rungs written into it, taking turns.

Run as `python benchmarks/speed_ladder.py [ROUNDS]`. Each row is an epoch of eight batches of 1024 images (made up, so
no data is needed; decoding them is not part of this ladder). Exit status 1 when a bare loop is more than 3% faster.
"""
import sys
from functools import partial

import torch
import torch.nn.functional as F
from timing import seconds, side_by_side
from torch import nn

from exp.nb00a import machine_name
from exp.nb06 import default_device
from exp.nb08 import DataLoaders
from exp.nb09 import DeviceCB
from exp.nb09b import TrainLearner
from exp.nb10 import set_seed
from exp.nb11 import conv, init_weights
from exp.nb12c import ChannelsLastCB, MixedPrecisionCB, TensorLoader, _small_as_product, has_fast_bf16

BUDGET, BS, BATCHES, LR, FRESH = 0.03, 1024, 8, 1e-3, 3              # nets are made anew so often


def net(seed: int = 42) -> nn.Module:
    "The net of chapter 12c: `(n, 1, 28, 28)` -> `(n, 10)`."
    torch.manual_seed(seed)
    nfs = (16, 32, 64, 128, 256)
    convs = [conv(1, nfs[0], stride=1, norm=nn.BatchNorm2d)]
    convs += [conv(a, b, norm=nn.BatchNorm2d) for a, b in zip(nfs, nfs[1:], strict=False)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(nfs[-1]*4, 10)).apply(init_weights)


def bare(dl, device: torch.device, last: bool, half: bool, fused: bool):
    "A function that trains for an epoch without any framework, and its model."
    model = net().to(device)
    if last:
        model = model.to(memory_format=torch.channels_last)
    if half and device.type == "cpu":                                   # as MixedPrecisionCB does
        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                m.register_forward_hook(_small_as_product, with_kwargs=True)

    def epoch():
        opt = torch.optim.AdamW(model.parameters(), lr=LR, fused=fused)
        model.train()
        for xb, yb in dl:
            if last:
                xb = xb.to(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                preds = model(xb)
            F.cross_entropy(preds.float(), yb).backward()
            opt.step()
            opt.zero_grad()
    return epoch, model


def learned(dl, device: torch.device, last: bool, half: bool, fused: bool):
    "The same with a learner."
    cbs = [DeviceCB(device), *([ChannelsLastCB()] if last else []), *([MixedPrecisionCB()] if half else [])]
    learn = TrainLearner(net(), DataLoaders(dl), F.cross_entropy, lr=LR, cbs=cbs,
                         opt_func=partial(torch.optim.AdamW, fused=fused))
    return lambda: learn.fit(1, valid=False), learn.model


def seeded(f) -> float:
    "The seconds of `f` from a known state of the random generators."
    set_seed(42)
    return seconds(f)


def same(a: nn.Module, b: nn.Module) -> bool:
    "Have both learned the same?"
    a, b = (torch.cat([p.detach().flatten() for p in m.parameters()]) for m in (a, b))
    return ((a - b).norm()/b.norm()).item() < 1e-4


def main(rounds: int = 12) -> int:
    "Prints the table; 1 if a bare loop is more than 3% faster, or the two do not learn the same."
    each = -(-rounds//FRESH)                                            # with the same nets
    device, half = default_device(), has_fast_bf16(default_device().type)
    g = torch.Generator().manual_seed(42)
    x = torch.randint(256, (BS*BATCHES, 28, 28), dtype=torch.uint8, generator=g)
    dl = TensorLoader(x, torch.randint(10, (len(x),), generator=g), BS, shuffle=True, device=device,
                      normalize=(0.5, 0.29))
    print(f"{BATCHES} batches of {BS} on {device.type}, least of {each*FRESH} rounds or more, torch "
          f"{torch.__version__}, {machine_name(device)}" + ("" if half else ", no fast bfloat16"))
    print(f"{'':16}{'ms a batch':>11}{'bare loop':>11}{'over it':>9}{'budget':>9}{'rounds':>8}")
    worst = 0
    rungs = [("TensorLoader", False, False, False), ("channels last", True, False, False),
             ("bfloat16", True, True, False), ("fused AdamW", True, True, True)]
    for name, last, half_too, fused in rungs:
        different = []

        def both(rung=(last, half and half_too, fused), different=different):
            (base, m1), (run, m2) = (f(dl, device, *rung) for f in (bare, learned))
            seeded(base), seeded(run)
            different.append(not same(m1, m2))
            return run, base

        t, t_bare, over, rounds = side_by_side(both, each, FRESH, BUDGET, seeded)
        if any(different):
            print(f"{name}: the learner and the bare loop end with other weights")
        bad = over > BUDGET
        print(f"{name:16}{t/BATCHES*1e3:11.2f}{t_bare/BATCHES*1e3:11.2f}{over:+9.1%}{BUDGET:9.0%}{rounds:8}"
              f"{'   over budget' if bad else ''}", flush=True)
        worst = worst or bad or any(different)
    return int(worst)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
