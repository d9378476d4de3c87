# INTERIM
__all__ = ['AvgStatsCallback', 'Callback', 'DataBunch', 'EVENTS', 'Learner', 'Runner', 'TrainEvalCallback', 'as_list']
import re
from collections.abc import Callable

import torch
from torch import nn

from exp.nb03 import check_loss


class DataBunch:
    "The loaders of one problem: `train_dl`, `valid_dl` (or `None`) and `c`, the number of classes if there are any."
    def __init__(self, train_dl, valid_dl=None, c: "int | None" = None):
        self.train_dl, self.valid_dl, self.c = train_dl, valid_dl, c

    @property
    def train_ds(self):
        return self.train_dl.dataset

    @property
    def valid_ds(self):
        return None if self.valid_dl is None else self.valid_dl.dataset


class Learner:
    "What a training run needs, in one place: the `model`, its `opt`, the `loss_func` and the `data`, a `DataBunch`."
    def __init__(self, model: nn.Module, opt: torch.optim.Optimizer, loss_func: Callable, data: DataBunch):
        self.model, self.opt, self.loss_func, self.data = model, opt, loss_func, data


class Callback:
    """Base of all callbacks: a method named like an event is called when that event happens.

    `_order` sorts the callbacks of a runner (lowest first). `name` is the class name in snake case without "Callback".
    What a callback doesn't have itself is read from its runner (`self.model` is `self.run.model`). Assigning never goes
    there: to change the runner write `self.run.xb = …`.
    """
    _order, run = 0, None

    def set_runner(self, run: "Runner") -> None:
        self.run = run

    @property
    def name(self) -> str:
        words = re.sub(r"Callback$", "", type(self).__name__) or "Callback"
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", words).lower()

    def __getattr__(self, k: str):
        if self.run is None:
            raise AttributeError(f"{type(self).__name__} has no {k!r}, and no runner to look it up in yet")
        return getattr(self.run, k)


class TrainEvalCallback(Callback):
    "Switches model and runner between training and evaluation, and counts training batches: `n_iter`, `n_epochs`."
    _order = -10

    def before_fit(self):
        self.run.n_epochs, self.run.n_iter = 0., 0

    def before_epoch(self):
        self.model.train()
        self.run.in_train, self.start = True, self.n_iter

    def after_batch(self):
        if self.in_train:
            self.run.n_iter += 1
            self.run.n_epochs = self.epoch + (self.n_iter - self.start)/self.iters

    def before_validate(self):
        self.model.eval()
        self.run.in_train = False


EVENTS = ("before_fit", "before_epoch", "before_batch", "after_pred", "after_loss", "after_backward", "after_step",
          "after_batch", "before_validate", "after_epoch", "after_fit")


def as_list(o) -> list:
    "`o` as a list: nothing for `None`, a list or tuple as it is, anything else as the one item."
    return [] if o is None else list(o) if isinstance(o, (list, tuple)) else [o]


def _of_learner(k: str) -> property:
    def get(run):
        if run.learn is None:
            raise AttributeError(f"a Runner has a {k!r} only while it fits: ask the learner for it")
        return getattr(run.learn, k)
    return property(get)


class Runner:
    """The training loop. At each of `EVENTS` it calls the callbacks with a method of that name, lowest `_order` first.

    `cbs` are callbacks, `cb_funcs` are functions that make one (a class, a `partial`). A `TrainEvalCallback` is always
    there, and each callback is also an attribute under its `name`. A method that returns True skips what its event
    introduces: before_fit all epochs; before_epoch the training batches; before_batch, after_pred, after_loss and
    after_backward the rest of that batch; before_validate the validation; after_epoch ends the fit.
    `after_batch` and `after_fit` always happen.

    While fitting it has `epochs, epoch, n_epochs` (a fraction), `n_iter, iters, batch_idx, xb, yb, pred, loss`,
    `in_train, learn` and the learner's `model, opt, loss_func, data`.
    """
    model, opt, loss_func, data = map(_of_learner, ("model", "opt", "loss_func", "data"))

    def __init__(self, cbs=None, cb_funcs=None):
        self.epochs = self.epoch = self.n_iter = self.iters = self.batch_idx = 0
        self.n_epochs, self.in_train = 0., False
        self.xb = self.yb = self.pred = self.loss = self.learn = None
        self.cbs = []
        for cb in [TrainEvalCallback(), *as_list(cbs), *(f() for f in as_list(cb_funcs))]:
            self.add_cb(cb)

    def add_cb(self, cb: Callback) -> None:
        "Adds one callback. Raises `TypeError` for a class, `ValueError` when its name is taken."
        if isinstance(cb, type):
            raise TypeError(f"{cb.__name__} is a class: pass {cb.__name__}(), or put the class into cb_funcs")
        if cb.name in dir(self) or cb.name in EVENTS:
            raise ValueError(f"the name {cb.name!r} of {type(cb).__name__} is taken: "
                             "by another callback, an event or the runner itself")
        setattr(self, cb.name, cb)
        self.cbs = sorted([*self.cbs, cb], key=lambda cb: cb._order)

    def __call__(self, event: str) -> bool:
        "Tells every callback about `event`; True if one of them asked to stop."
        stop = False
        for cb in self.cbs:
            method = getattr(cb, event, None)
            if method is not None and method(): stop = True
        return stop

    def fit(self, epochs: int, learn: Learner) -> None:
        """Trains `learn` for `epochs` epochs. Whatever happens, `after_fit` is called last and the learner let go.

        Raises `ValueError` for negative `epochs` or a loader without batches, `FloatingPointError` for a NaN loss.
        """
        if epochs < 0: raise ValueError(f"epochs must be 0 or more, got {epochs}")
        self.epochs, self.learn = epochs, learn
        try:
            for cb in self.cbs: cb.set_runner(self)
            if self("before_fit"): return
            for self.epoch in range(epochs):
                if not self("before_epoch"): self.all_batches(self.data.train_dl)
                if self.data.valid_dl is not None:
                    with torch.no_grad():
                        if not self("before_validate"): self.all_batches(self.data.valid_dl)
                if self("after_epoch"): break
        finally:
            try: self("after_fit")
            finally: self.learn = None

    def all_batches(self, dl) -> None:
        "One pass over `dl`."
        self.iters = len(dl)
        if self.iters == 0:
            raise ValueError(f"the {'training' if self.in_train else 'validation'} loader gives no batches")
        for self.batch_idx, (self.xb, self.yb) in enumerate(dl):
            self.one_batch()
            self("after_batch")

    def one_batch(self) -> None:
        "One batch: prediction and loss, and in training also gradients and a step."
        self.pred = self.loss = None
        if self("before_batch"): return
        self.pred = self.model(self.xb)
        if self("after_pred"): return
        self.loss = self.loss_func(self.pred, self.yb)
        if self("after_loss"): return
        check_loss(self.loss, self.epoch, self.batch_idx, "training" if self.in_train else "validation")
        if not self.in_train: return
        self.loss.backward()
        if self("after_backward"): return
        self.opt.step()
        self.opt.zero_grad()
        self("after_step")


class AvgStatsCallback(Callback):
    """Averages the loss and `metrics` over each epoch's items, prints one line an epoch and keeps the numbers.

    `metrics` is a function `(preds, yb) -> scalar` or a list of them; batches are weighted by their size. `history` has
    one dict an epoch: `train_loss`, `train_accuracy` and, if there is a validation set, `valid_loss`, `valid_accuracy`.
    `quiet` keeps it from printing. Raises `TypeError` for a metric that can't be called.
    """
    def __init__(self, metrics=(), quiet: bool = False):
        self.metrics, self.quiet, self.history = as_list(metrics), quiet, []
        for m in self.metrics:
            if not callable(m): raise TypeError(f"a metric is a function of (preds, yb), got {m!r}")
        self.names = ["loss"] + [getattr(getattr(m, "func", m), "__name__", type(m).__name__) for m in self.metrics]

    def before_fit(self):
        self.history = []

    def before_epoch(self):
        self.sums = {in_train: [0.]*len(self.names) for in_train in (True, False)}
        self.count = {True: 0, False: 0}

    def after_loss(self):
        pred, yb, n, sums = self.pred.detach(), self.yb, len(self.xb), self.sums[self.in_train]
        for i, v in enumerate([self.loss.detach(), *(m(pred, yb) for m in self.metrics)]):
            sums[i] += float(v) * n
        self.count[self.in_train] += n

    def after_epoch(self):
        row = {}
        for in_train, phase in ((True, "train"), (False, "valid")):
            if in_train or self.data.valid_dl is not None:
                n = self.count[in_train] or float("nan")         # nothing seen: no mean
                row |= {f"{phase}_{k}": v/n for k, v in zip(self.names, self.sums[in_train], strict=True)}
        self.history.append(row)
        if self.quiet: return
        if len(self.history) == 1: print("epoch  " + "  ".join(f"{k:>12}" for k in row))
        print(f"{self.epoch:>5}  " + "  ".join(f"{v:>{max(12, len(k))}.4f}" for k, v in row.items()))
