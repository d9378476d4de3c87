"What the workers of test_16_scale.py do: each function runs in every one of them, and returns plain values."
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from exp.nb03 import Dataset, get_dls
from exp.nb08 import DataLoaders
from exp.nb09 import Accuracy, MetricsCB
from exp.nb09a import TrainLearner
from exp.nb12c import TensorLoader
from exp.nb16 import AccelerateCB, join_norms


def net(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(16)] if norm else []
    return nn.Sequential(nn.Linear(8, 16), *middle, nn.ReLU(), nn.Linear(16, 3)).double()


def data(n: int):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, generator=g, dtype=torch.float64), torch.randint(3, (n,), generator=g)


def loaders(kind: str, n: int, bs: int, n_valid: int = 21) -> DataLoaders:
    (x, y), (xv, yv) = data(n), data(n_valid)
    if kind == "tensors":
        return DataLoaders(TensorLoader(x, y, bs, shuffle=True), TensorLoader(xv, yv, bs))
    if kind == "get_dls":
        return DataLoaders(*get_dls(Dataset(x, y), Dataset(xv, yv), bs, torch.Generator().manual_seed(3)))
    return DataLoaders(DataLoader(TensorDataset(x, y), bs, shuffle=True), DataLoader(TensorDataset(xv, yv), bs))


def learner(kind: str = "tensors", n: int = 50, bs: int = 8, norm: bool = False, cbs=(), **kwargs) -> TrainLearner:
    model = net(norm)
    torch.manual_seed(5)
    metrics = MetricsCB(Accuracy(), quiet=True)
    return TrainLearner(join_norms(model), loaders(kind, n, bs), F.cross_entropy, 0.1, [metrics, *cbs], **kwargs)


def results(learn) -> dict:
    rows = [{k: v for k, v in r.items() if k != "time"} for r in learn.metrics.history]
    return {"weights": [p.detach() for p in learn.model.state_dict().values()], "rows": rows}


def train(kind: str, n: int, bs: int, norm: bool, accumulate: int, epochs: int = 3, fits: int = 1) -> dict:
    learn = learner(kind, n, bs, norm, [AccelerateCB(accumulate)])
    for _ in range(fits):
        learn.fit(epochs)
    return results(learn)


def rank() -> int: return dist.get_rank()
