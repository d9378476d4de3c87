"What the benchmarks of the training loop share."
import ctypes
import gc
import sys
import time
from collections.abc import Callable

import torch

if sys.platform == "linux":                                 # freed memory stays with the process, where glibc rules it:
    for option, value in ((-1, 2**31 - 1), (-4, 0)):        # else the kernel's pages for a tensor are what is timed
        getattr(ctypes.CDLL(None), "mallopt", lambda *_: None)(option, value)


def seconds(f: Callable) -> float:
    "How long one call of `f` takes, what it has started on a GPU included."
    gc.collect()
    start = time.perf_counter()
    f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(make: Callable[[], tuple[Callable, Callable]], each: int, fresh: int, budget: float | None = None,
                 clock: Callable[[Callable], float] = seconds) -> tuple[float, float, float, int]:
    """The least seconds of what is measured, of what it is held against, the share above that, and the rounds.

    `make` makes the two functions anew, `fresh` times, as where their memory lies makes a difference; each time they
    run `each` rounds, right beside each other, turn about. What others do on a machine only ever adds to a time, by 20%
    from one second to the next, so the least of each counts, as with `timeit`; what is over its budget then is measured
    three times as long, and all rounds count.
    """
    mine: list[float] = []
    base: list[float] = []
    for block in range(3*fresh):
        if block == fresh and (budget is None or min(mine)/min(base) - 1 <= budget):    # asked once, not until it fits
            break
        both = make()
        for r in range(each + 1):
            took = {f: clock(f) for f in both[::1 if r % 2 else -1]}
            if r:                                                       # the first round warms up
                mine.append(took[both[0]])
                base.append(took[both[1]])
    return min(mine), min(base), min(mine)/min(base) - 1, len(mine)
