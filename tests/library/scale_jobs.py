"What the workers of test_16_scale.py do: each function runs in every one of them, and returns plain values."
import io
import os
import time
from contextlib import redirect_stdout

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from exp.nb03 import Dataset, get_dls
from exp.nb08 import DataLoaders
from exp.nb09 import Accuracy, MetricsCB
from exp.nb09a import ProgressCB
from exp.nb09b import TrainLearner
from exp.nb11 import LSUVCB
from exp.nb12c import TensorLoader
from exp.nb13b import CheckpointCB
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


def weights_by_the_data() -> dict:
    "The weights after an epoch that began with weights set by each worker's part of the first batch."
    learn = learner(cbs=[AccelerateCB(), LSUVCB()])
    learn.fit(1)
    return results(learn)


def train_twice() -> dict:
    learn = learner(n=53, cbs=[AccelerateCB()])
    layers = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3)
    torch.manual_seed(0)
    learn.model = nn.Sequential(*layers).double()
    for p in learn.model.parameters():
        nn.init.ones_(p) if p.ndim == 1 else nn.init.eye_(p)
    for _ in range(2):
        learn.fit(1, valid=False)
    return results(learn)


def threads() -> int:
    learner(n=48, cbs=[AccelerateCB()]).fit(1)
    return torch.get_num_threads()


def sharded(cut: bool) -> dict:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    learn = learner(cbs=[AccelerateCB()], opt_func=torch.optim.AdamW)
    if cut:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for m in [*learn.model.children(), learn.model]:
            if [*m.parameters()]:
                fully_shard(m, mesh=mesh)
    learn.fit(2)
    kept = [t for p in learn.model.parameters() for t in (p, *learn.opt.state[p].values())]
    mine = [t.to_local() if hasattr(t, "to_local") else t for t in kept]
    whole = [(p.full_tensor() if cut else p).detach() for p in learn.model.parameters()]
    return {"weights": whole, "bytes": sum(t.numel()*t.itemsize for t in mine)}


def loud(path: str) -> str:
    "What a worker prints when nothing is quiet."
    out = io.StringIO()
    with redirect_stdout(out):
        learn = learner(cbs=[AccelerateCB(), CheckpointCB(path), ProgressCB()])
        learn.metrics = None
        next(cb for cb in learn.cbs if isinstance(cb, MetricsCB)).quiet = False
        learn.fit(1)
    return out.getvalue()


def attempt(learn, epochs: int = 1) -> str:
    try:
        learn.fit(epochs)
    except Exception as e:
        return f"{type(e).__name__}: {e}"
    return ""


def differing(what: str, bs: int = 8) -> tuple[str, int]:
    "What a worker says when worker 1 has another `what`, and how many steps it has made."
    odd = dist.get_rank() == 1
    learn = learner(n=56 if odd and what == "batches" else 48, bs=bs, cbs=[AccelerateCB()])
    if odd and what == "model":
        learn.model[0].weight.data[0, 0] += 1
    if odd and what == "data":
        learn.dls.train.dataset.y[3] = 1 - learn.dls.train.dataset.y[3]
    if odd and what == "seed":
        torch.manual_seed(6)
    return attempt(learn, 1 + (odd and what == "epochs")), len(learn.opt.state) if learn.opt else 0


def checkpointed(path: str, epochs: int, width: int) -> str:
    learn = learner(cbs=[AccelerateCB(), CheckpointCB(path, resume=True)])
    learn.model = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3)).double()
    return attempt(learn, epochs)


def fail() -> float:
    return 1/(1 - dist.get_rank())


def leave() -> None:
    if dist.get_rank() == 1:
        os._exit(3)
    time.sleep(600)


def hang() -> None:
    if dist.get_rank() == 0:
        time.sleep(600)


def hang_all() -> None:
    time.sleep(600)
