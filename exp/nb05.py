# INTERIM
__all__ = ['ParamScheduler', 'Recorder', 'annealer', 'combine_scheds', 'cos_1cycle_anneal', 'sched_cos', 'sched_exp', 'sched_lin', 'sched_no']
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial, wraps
from itertools import accumulate

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from exp.nb04 import Callback


def _check_pos(pos: float) -> float:
    pos = float(pos)
    if not -1e-6 <= pos <= 1 + 1e-6: raise ValueError(f"pos {pos} is outside [0, 1], the span of a schedule")
    return min(max(pos, 0.), 1.)                # what rounding put just outside

def _at(f, start, end, pos): return f(start, end, _check_pos(pos))

def annealer(f: Callable[[float, float, float], float]) -> Callable[[float, float], Callable[[float], float]]:
    """Turn `f(start, end, pos)` into `f(start, end)`, which returns a schedule: a function of `pos` alone.

    A schedule takes the share of training that is over, 0 to 1, and returns the value to use there. Outside
    that span (rounding of 1e-6 apart) it raises ValueError rather than extrapolate. `f` is tried once
    when the schedule is made, so ends that it cannot use fail there and not in a training run."""
    @wraps(f, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
    def _inner(start: float, end: float) -> Callable[[float], float]:
        sched = partial(_at, f, start, end)
        sched(0.)
        return sched
    del _inner.__wrapped__                      # or help() would show f's three arguments
    return _inner


@annealer
def sched_lin(start, end, pos):
    "A straight line from `start` to `end`."
    return start + pos*(end - start)

@annealer
def sched_cos(start, end, pos):
    "Half a cosine wave from `start` to `end`: flat at both ends, steepest in the middle."
    return start + (1 + math.cos(math.pi*(1 - pos))) * (end - start) / 2

@annealer
def sched_no(start, end, pos):
    "`start` throughout; `end` is there so that every schedule is made alike."
    return start

@annealer
def sched_exp(start, end, pos):
    "From `start` to `end` by equal factors for equal steps. Both must be positive, or ValueError."
    if not (start > 0 and end > 0): raise ValueError(f"sched_exp needs ends above 0, not {start} and {end}")
    return start * (end/start)**pos


def combine_scheds(pcts: Sequence[float], scheds: Sequence[Callable[[float], float]]) -> Callable[[float], float]:
    """One schedule that runs `scheds` one after the other, each for its share `pcts` of the whole.

    Every phase sees its own `pos` go from 0 to 1; a boundary belongs to the phase that begins there, a
    phase of share 0 is skipped. ValueError for a negative share, for shares that do not sum to one and
    for lists of different lengths."""
    pcts = [float(p) for p in pcts]
    if len(pcts) != len(scheds): raise ValueError(f"{len(pcts)} shares {pcts} for {len(scheds)} schedules")
    if not all(p >= 0 for p in pcts): raise ValueError(f"a phase cannot have a negative share: {pcts}")
    if not abs(sum(pcts) - 1) < 1e-6: raise ValueError(f"phases must sum to one: {pcts} sum to {sum(pcts):g}")
    phases = [(pct, sched) for pct, sched in zip(pcts, scheds, strict=True) if pct > 0]
    begins = [0., *accumulate(pct for pct, _ in phases)][:-1]
    def _inner(pos: float) -> float:
        pos = _check_pos(pos)
        i = bisect_right(begins, pos) - 1
        pct, sched = phases[i]
        return sched(min((pos - begins[i]) / pct, 1.))
    return _inner


def cos_1cycle_anneal(start: float, high: float, end: float) -> list[Callable[[float], float]]:
    """The two phases of one-cycle, cosine up from `start` to `high` and cosine down to `end`, for `combine_scheds`.

    Smith & Topin, "Super-Convergence" (2017), with cosines for its straight lines."""
    return [sched_cos(start, high), sched_cos(high, end)]


class ParamScheduler(Callback):
    """Before every training batch, set the optimiser's `pname` ("lr", "momentum") to the schedule's value there.

    `sched_funcs` is one schedule for all parameter groups, or a list with one schedule a group. Batch `i` of the `n`
    of the whole fit gets `sched(i/n)`. `before_fit` raises ValueError if the list does not fit the groups, or if the
    optimiser has no `pname`. Its name is `lr_scheduler`, `momentum_scheduler`, …: a runner can have one of each."""
    _order = 1

    def __init__(self,
                 pname: str,                                           # a key of `opt.param_groups`
                 sched_funcs: Callable[[float], float] | Sequence[Callable[[float], float]]):  # of pos in [0, 1]
        self.pname, self.sched_funcs = pname, sched_funcs

    @property
    def name(self) -> str: return f"{self.pname}_scheduler"

    def before_fit(self) -> None:
        groups = self.opt.param_groups
        for g in groups:
            if self.pname not in g:
                raise ValueError(f"the optimiser has no {self.pname!r}, only {sorted(set(g) - {'params'})}")
        if not callable(self.sched_funcs) and len(self.sched_funcs) != len(groups):
            raise ValueError(f"{len(self.sched_funcs)} schedules for {len(groups)} parameter groups")

    def before_batch(self) -> None:
        if not self.in_train: return
        groups = self.opt.param_groups
        fs = [self.sched_funcs]*len(groups) if callable(self.sched_funcs) else self.sched_funcs
        pos = (self.epoch*self.iters + self.batch_idx) / (self.epochs*self.iters)
        for g, f in zip(groups, fs, strict=True): g[self.pname] = f(pos)


class Recorder(Callback):
    """Keep the loss and the rate of every parameter group for each training batch.

    `losses` is a list of floats; `lrs` is a list with one list of rates for each group. A batch that was skipped before
    its loss was known leaves nothing."""
    def before_fit(self) -> None:
        self.lrs: list[list[float]] = [[] for _ in self.opt.param_groups]
        self.losses: list[float] = []

    def after_batch(self) -> None:
        if not self.in_train or self.loss is None: return
        for rates, g in zip(self.lrs, self.opt.param_groups, strict=True): rates.append(g["lr"])
        self.losses.append(self.loss.item())

    def plot_lr(self, pgid: int | None = -1, ax: Axes | None = None) -> Axes:
        "Plot the rate of group `pgid` (the last by default, `None` for all of them) over the batches."
        ax = ax or plt.subplots(figsize=(5, 2.8))[1]
        ids = range(len(self.lrs)) if pgid is None else [range(len(self.lrs))[pgid]]
        for i in ids: ax.plot(self.lrs[i], label=f"group {i}")
        if len(ids) > 1: ax.legend()
        ax.set(xlabel="batch", ylabel="learning rate")
        return ax

    def plot_loss(self, skip_last: int = 0, ax: Axes | None = None) -> Axes:
        "Plot the training loss over the batches, without the last `skip_last` of them."
        ax = ax or plt.subplots(figsize=(5, 2.8))[1]
        ax.plot(self.losses[:len(self.losses) - skip_last], lw=.8)
        ax.set(xlabel="batch", ylabel="training loss")
        return ax
