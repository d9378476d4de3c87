# INTERIM
__all__ = ['BatchTransformXCallback', 'DeviceCallback', 'GeneralRelu', 'Hook', 'Hooks', 'Lambda', 'ListContainer', 'append_stats', 'conv_layer', 'default_device', 'flatten', 'get_cnn_layers', 'get_cnn_model', 'get_hist', 'get_min', 'get_runner', 'init_cnn', 'normalize_to', 'share_at_floor', 'share_no_grad', 'view_tfm']
import operator
import os
import weakref
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exp.nb02 import normalize
from exp.nb04 import AvgStatsCallback, DataBunch, Learner
from exp.nb05b import Callback, Runner


def normalize_to(train: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    "Both sets (any shape) with the training set's mean subtracted, divided by its standard deviation (02)."
    m, s = train.mean(), train.std()
    return normalize(train, m, s), normalize(valid, m, s)


class Lambda(nn.Module):
    "A layer that calls `func` on its input."
    def __init__(self, func: Callable[[Tensor], Tensor]):
        super().__init__()
        self.func = func

    def forward(self, x: Tensor) -> Tensor:
        return self.func(x)

    def extra_repr(self) -> str:
        return getattr(self.func, "__name__", type(self.func).__name__)


def flatten(x: Tensor) -> Tensor:
    "One row per item: `(n, …)` -> `(n, all the rest)`. Unlike `squeeze`, it keeps a batch of one."
    return x.flatten(1)


def default_device() -> torch.device:
    """The device to train on: `cuda` if there is one, else `mps` (Apple), else `cpu`; `GROUNDUP_DEVICE` overrides.

    Raises `ValueError` when the variable names no device of this kind or one that this machine lacks.
    """
    name = os.environ.get("GROUNDUP_DEVICE")
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"GROUNDUP_DEVICE={name!r} can't be used here ({str(e).splitlines()[0]}): unset it, or set cpu") from None
    return torch.device(name)


class DeviceCallback(Callback):
    "Moves the model, before a fit, and each batch to `device`; without one, to `default_device()`."
    _order = -5

    def __init__(self, device: "torch.device | str | None" = None):
        self.device = torch.device(device) if device is not None else default_device()

    def before_fit(self):
        self.model.to(self.device)

    def before_batch(self):
        self.run.xb, self.run.yb = self.xb.to(self.device), self.yb.to(self.device)


class BatchTransformXCallback(Callback):
    "Replaces the inputs of every batch, in training and validation, by `tfm(xb)`."
    _order = 2

    def __init__(self, tfm: Callable[[Tensor], Tensor]):
        self.tfm = tfm

    def before_batch(self):
        self.run.xb = self.tfm(self.xb)


def view_tfm(*size: int) -> Callable[[Tensor], Tensor]:
    "A function that views a batch `(n, …)` as `(n, *size)`."
    def _inner(x: Tensor) -> Tensor:
        return x.view(len(x), *size)
    return _inner


def get_cnn_layers(nfs: Iterable[int], c: int, ni: int = 1, layer: "Callable[..., nn.Module] | None" = None,
                   **kwargs) -> list[nn.Module]:
    """The layers of a stride-2 CNN: one `layer` per entry of `nfs`, then average pooling, flattening and a linear layer.

    Turns `(n, ni, h, w)` into `(n, c)`. The first kernel is 5×5, the others 3×3. `layer(ni, nf, ks, **kwargs)` makes one
    layer; the default is `conv_layer`.
    """
    nfs = [ni, *nfs]
    convs = [(layer or conv_layer)(nfs[i], nfs[i+1], 3 if i else 5, **kwargs) for i in range(len(nfs) - 1)]
    return [*convs, nn.AdaptiveAvgPool2d(1), Lambda(flatten), nn.Linear(nfs[-1], c)]


def get_cnn_model(nfs: Iterable[int], c: int, ni: int = 1, layer: "Callable[..., nn.Module] | None" = None,
                  **kwargs) -> nn.Sequential:
    "`get_cnn_layers` as a model."
    return nn.Sequential(*get_cnn_layers(nfs, c, ni, layer, **kwargs))


def get_runner(model: nn.Module, data: DataBunch, lr: float = 0.6, cbs: "list[Callback] | None" = None,
               cb_funcs: "list[Callable[[], Callback]] | None" = None, opt_func: "Callable | None" = None,
               loss_func: Callable = F.cross_entropy) -> tuple[Learner, Runner]:
    "A learner and a runner for it: plain SGD with rate `lr` unless `opt_func(parameters, lr=…)` says otherwise."
    opt = (opt_func or torch.optim.SGD)(model.parameters(), lr=lr)
    return Learner(model, opt, loss_func, data), Runner(cbs=cbs, cb_funcs=cb_funcs)


class Hook:
    """Calls `f(hook, module, inputs, output)` after every forward pass of `m`, and keeps what `f` stores on it.

    `remove` takes it off the module, as often as you like; so does deleting it, or leaving a `with` block.
    """
    def __init__(self, m: nn.Module, f: Callable):
        ref = weakref.ref(self)                            # a strong reference from the module would keep us alive

        def call(mod, inp, out):
            if (hook := ref()) is not None: f(hook, mod, inp, out)
        self.hook = m.register_forward_hook(call)

    def remove(self) -> None:
        self.hook.remove()

    def __enter__(self) -> "Hook":
        return self

    def __exit__(self, *exc) -> None:
        self.remove()

    def __del__(self):
        if hasattr(self, "hook"): self.remove()


class ListContainer:
    """A list in `items` that is also indexed by a boolean mask or by a list of positions (both give a list).

    Raises `IndexError` for a mask of another length than the list. Shows at most ten items when printed.
    """
    def __init__(self, items: Iterable = ()):
        self.items = list(items)

    def __getitem__(self, idx):
        if isinstance(idx, Tensor): idx = idx.tolist()
        if isinstance(idx, slice) or not isinstance(idx, (list, tuple)):
            return self.items[idx]
        if idx and all(isinstance(i, bool) for i in idx):
            if len(idx) != len(self): raise IndexError(f"a mask of {len(idx)} for a list of {len(self)} items")
            return [o for keep, o in zip(idx, self.items, strict=True) if keep]
        return [self.items[operator.index(i)] for i in idx]

    def __setitem__(self, i, o): self.items[i] = o
    def __delitem__(self, i): del self.items[i]
    def __len__(self) -> int: return len(self.items)
    def __iter__(self): return iter(self.items)

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.items[:10])) + (", …" if len(self) > 10 else "")
        return f"{type(self).__name__} ({len(self)} items)\n[{shown}]"


class Hooks(ListContainer):
    "One `Hook` calling `f` on each of the modules `ms`; use in a `with` block, or call `remove`."
    def __init__(self, ms: Iterable[nn.Module], f: Callable):
        super().__init__(Hook(m, f) for m in ms)

    def __enter__(self) -> "Hooks":
        return self

    def __exit__(self, *exc) -> None:
        self.remove()

    def __delitem__(self, i) -> None:
        for hook in (self.items[i] if isinstance(i, slice) else [self.items[i]]): hook.remove()
        super().__delitem__(i)

    def remove(self) -> None:
        "Take every hook off its module; harmless when done already."
        for hook in self: hook.remove()


def init_cnn(model: nn.Module, uniform: bool = False, a: float = 0.) -> None:
    """Kaiming initialisation of the convolutions in the direct `nn.Sequential` children of `model`, biases to 0.

    `a` is the slope below zero of the activation that follows; `uniform` draws from a uniform instead of a normal
    distribution of the same standard deviation. Delving Deep into Rectifiers, https://arxiv.org/abs/1502.01852.
    """
    init = nn.init.kaiming_uniform_ if uniform else nn.init.kaiming_normal_
    for layer in model.children():
        if isinstance(layer, nn.Sequential):
            init(layer[0].weight, a=a)
            if layer[0].bias is not None: nn.init.zeros_(layer[0].bias)


def append_stats(hook: Hook, mod: nn.Module, inp, out: Tensor, bins: int = 40, lo: float = -7., hi: float = 7.) -> None:
    """For `Hooks`: after each training batch, append to `hook.means`, `hook.stds` and `hook.hists`.

    The histogram counts activations in `bins` equal bins from `lo` to `hi`; what lies outside is not counted. Validation is not recorded.
    """
    if not hasattr(hook, "hists"): hook.means, hook.stds, hook.hists = [], [], []
    if mod.training:
        out = out.detach().float()
        hook.means.append(out.mean().item())
        hook.stds.append(out.std().item())
        hook.hists.append(out.histc(bins, lo, hi).cpu())


def get_hist(hook: Hook) -> Tensor:
    "The histograms of a hook filled by `append_stats` as an image `(bins, batches)` of log(1 + count), lowest bin first."
    return torch.stack(hook.hists).t().log1p()


def get_min(hook: Hook, bins: slice = slice(19, 22)) -> Tensor:
    """Share of the recorded activations in `bins`, for each batch: `(batches,)`.

    The default is the middle of 40 bins from -7 to 7, about -0.35 to 0.7. Beware: where the activation's floor lies below
    these bins, this flatters it.
    """
    hists = torch.stack(hook.hists)
    return hists[:, bins].sum(1) / hists.sum(1)


class GeneralRelu(nn.Module):
    """A rectifier with slope `leak` below zero, then `sub` subtracted, then cut off at `maxv`; each is off when `None`.

    Any shape in, the same shape out. Its floor is `-sub`, apart from the leak.
    """
    def __init__(self, leak: float | None = None, sub: float | None = None, maxv: float | None = None):
        super().__init__()
        self.leak, self.sub, self.maxv = leak, sub, maxv

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) if self.leak is None else F.leaky_relu(x, self.leak)
        if self.sub is not None: x = x - self.sub
        return x if self.maxv is None else x.clamp_max(self.maxv)

    def extra_repr(self) -> str:
        return f"leak={self.leak}, sub={self.sub}, maxv={self.maxv}"


def conv_layer(ni: int, nf: int, ks: int = 3, stride: int = 2, **kwargs) -> nn.Sequential:
    "Convolution, then `GeneralRelu(**kwargs)`: `(n, ni, h, w)` -> `(n, nf, ~h/stride, ~w/stride)`."
    return nn.Sequential(nn.Conv2d(ni, nf, ks, padding=ks//2, stride=stride), GeneralRelu(**kwargs))


def share_at_floor(act: nn.Module, x: Tensor) -> float:
    "Share of the inputs `x` of an activation for which its output is no higher than for 0."
    with torch.no_grad():
        return (act(x) <= act(torch.zeros_like(x))).float().mean().item()


def share_no_grad(act: nn.Module, x: Tensor) -> float:
    "Share of the inputs `x` of an activation at which its derivative is 0."
    x = x.detach().requires_grad_()
    grad, = torch.autograd.grad(act(x).sum(), x)
    return (grad == 0).float().mean().item()
