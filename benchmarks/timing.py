"What the benchmarks of the training loop share."
import gc
import time
from collections.abc import Callable

import torch


def seconds(f: Callable) -> float:
    "How long one call of `f` takes, what it has started on a GPU included."
    gc.collect()
    start = time.perf_counter()
    f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
