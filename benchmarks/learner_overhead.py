"""What the Learner costs: an epoch with it beside the same epoch as a bare loop, in one process, taking turns.

Run as `python benchmarks/learner_overhead.py`. Budget: 3% at batch size 1024, 10% at 64. Exit status 1 over it.
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
from exp.nb06 import default_device, flatten, Lambda  # noqa: E402
from exp.nb08 import DataLoaders  # noqa: E402
from exp.nb08a import conv  # noqa: E402
from exp.nb09 import Accuracy, DeviceCB, MetricsCB, TrainCB, TrainLearner, Learner  # noqa: E402

BUDGET = {1024: 0.03, 64: 0.10}
ROUNDS, ITEMS = 9, {1024: 16 * 1024, 64: 64 * 64}
