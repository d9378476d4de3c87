# INTERIM
__all__ = ['CANCELS', 'Callback', 'CancelBatchException', 'CancelEpochException', 'CancelTrainException', 'EVENTS', 'LRFind', 'Runner']
import math
from contextlib import ExitStack, suppress
from copy import deepcopy
from difflib import get_close_matches

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from exp.nb03 import check_loss
from exp.nb04 import EVENTS as EVENTS04, Callback as Callback04, Learner, Runner as Runner04
from exp.nb05 import sched_exp


class Callback(Callback04):
    """A callback that is told about every event by being called with its name.

    By default that calls the method of that name, if there is one; its return value does not matter. Override `__call__` to see
    every event. To stop, raise `CancelBatchException`, `CancelEpochException` or `CancelTrainException`."""
    def __call__(self, event: str) -> None:
        method = getattr(self, event, None)
        if method is not None: method()


class CancelBatchException(Exception):
    "Raised by a callback: the rest of this batch is skipped, `after_cancel_batch` and `after_batch` follow."

class CancelEpochException(Exception):
    "Raised by a callback: the rest of this epoch, validation included, is skipped; `after_cancel_epoch`, `after_epoch` follow."

class CancelTrainException(Exception):
    "Raised by a callback: the fit ends here; `after_cancel_train` and `after_fit` follow."


CANCELS = (CancelBatchException, CancelEpochException, CancelTrainException)
EVENTS = (*EVENTS04, "after_cancel_batch", "after_cancel_epoch", "after_cancel_train")

class Runner(Runner04):
    """The training loop of chapter 04, which a callback can leave at three levels by raising one of `CANCELS`.

    A cancelled batch or epoch still ends with its `after_batch` or `after_epoch`. A cancel raised where its level is not running
    (a batch cancel in `before_epoch`) cancels the next level out. Cancels never leave `fit`; other exceptions
    do. Whatever happens, every callback gets `after_fit` and the learner is let go. Return values of callbacks are ignored."""
    def add_cb(self, cb: Callback04) -> None:
        "Add a callback. Besides what 04's runner refuses, a method that looks like an event but is none is a ValueError."
        for k in dir(cb if isinstance(cb, type) else type(cb)):
            if k.startswith(("before_", "after_")) and k not in EVENTS:
                hint = "".join(f": did you mean {m}?" for m in get_close_matches(k, EVENTS, 1))
                raise ValueError(f"{type(cb).__name__}.{k} is not an event{hint}")
        super().add_cb(cb)

    def _tell(self, cb: Callback04, event: str) -> None:
        if callable(cb): cb(event)
        elif (method := getattr(cb, event, None)) is not None: method()

    def __call__(self, event: str) -> None:
        "Tell every callback about `event`, lowest `_order` first."
        for cb in self.cbs: self._tell(cb, event)

    def fit(self, epochs: int, learn: Learner) -> None:
        """Train `learn` for `epochs` epochs, or until a callback cancels.

        ValueError for negative `epochs` or a loader without batches, FloatingPointError that names the batch for a NaN loss."""
        if epochs < 0: raise ValueError(f"epochs must be 0 or more, got {epochs}")
        self.epochs, self.learn = epochs, learn
        try:
            with suppress(*CANCELS):                                    # raised in after_cancel_train
                try: self._all_epochs()
                except CANCELS: self("after_cancel_train")
        finally: self._finish()

    def _all_epochs(self) -> None:
        for cb in self.cbs: cb.set_runner(self)
        self.opt.zero_grad()
        self("before_fit")
        for epoch in range(self.epochs): self.one_epoch(epoch)

    def one_epoch(self, epoch: int) -> None:
        "Training batches, then validation batches."
        self.epoch = epoch
        try:
            self("before_epoch")
            self.all_batches(self.data.train_dl)
            if self.data.valid_dl is not None:
                with torch.no_grad():
                    self("before_validate")
                    self.all_batches(self.data.valid_dl)
        except (CancelEpochException, CancelBatchException): self("after_cancel_epoch")
        self("after_epoch")

    def one_batch(self) -> None:
        "One batch: prediction and loss, and in training also gradients and a step."
        self.pred = self.loss = None
        try:
            self("before_batch")
            self.pred = self.model(self.xb)
            self("after_pred")
            self.loss = self.loss_func(self.pred, self.yb)
            self("after_loss")
            check_loss(self.loss, self.epoch, self.batch_idx, "training" if self.in_train else "validation")
            if not self.in_train: return
            self.loss.backward()
            self("after_backward")
            self.opt.step()
            self.opt.zero_grad()                                        # before anyone can cancel
            self("after_step")
        except CancelBatchException: self("after_cancel_batch")

    def _finish(self) -> None:
        def last(cb: Callback04) -> None:
            with suppress(*CANCELS): self._tell(cb, "after_fit")
        with ExitStack() as stack:                                      # runs everything, last in first out
            stack.callback(setattr, self, "learn", None)
            for cb in reversed(self.cbs): stack.callback(last, cb)


def _generators(dl) -> list[torch.Generator]:
    "The generators a loader draws its order from."
    places = (dl, getattr(dl, "sampler", None), getattr(getattr(dl, "sampler", None), "sampler", None))
    return [g for g in (getattr(o, "generator", None) for o in places) if g is not None]

class LRFind(Callback):
    """Train with a rate that grows exponentially from `min_lr` to `max_lr` in `max_iter` batches; keep the losses; undo it all.

    Use it as a callback of a fit of enough epochs for `max_iter` batches. All parameter groups get the same rate. The fit is cancelled
    after `max_iter` batches, when the smoothed loss exceeds `stop` times its best, or when the loss is NaN
    or infinite; there is no validation. Then the model's and the optimiser's state, the rates and
    the random generators are as they were, so that training goes on as if it had never run.

    `lrs` and `losses` hold one number per batch, `smooth` the losses averaged (exponentially, weight `beta` on the past, without
    bias towards 0). ValueError unless 0 < `min_lr` < `max_lr` and `max_iter` >= 2. Smith, "Cyclical Learning Rates" (2015)."""
    _order = 2                                                          # after ParamScheduler: the last word on the rate

    def __init__(self, max_iter: int = 100, min_lr: float = 1e-6, max_lr: float = 10., stop: float = 4., beta: float = .8):
        if max_iter < 2: raise ValueError(f"max_iter must be at least 2, got {max_iter}")
        if not 0 < min_lr < max_lr: raise ValueError(f"need 0 < min_lr < max_lr, got {min_lr} and {max_lr}")
        self.max_iter, self.stop, self.beta = max_iter, stop, beta
        self.sched, self._saved = sched_exp(min_lr, max_lr), None
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.smooth: list[float] = []

    def before_fit(self) -> None:
        self.lrs, self.losses, self.smooth, self._avg = [], [], [], 0.
        gens = _generators(self.data.train_dl)
        self._saved = (deepcopy(self.model.state_dict()), deepcopy(self.opt.state_dict()),
                       torch.get_rng_state(), [(g, g.get_state()) for g in gens],
                       torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])

    def before_batch(self) -> None:
        if not self.in_train: return
        if len(self.lrs) == self.max_iter: raise CancelTrainException
        for g in self.opt.param_groups: g["lr"] = self.sched(len(self.lrs) / (self.max_iter - 1))

    def after_loss(self) -> None:
        if not self.in_train: return
        loss = self.loss.item()
        if not math.isfinite(loss): raise CancelTrainException
        self.lrs.append(self.opt.param_groups[0]["lr"])
        self.losses.append(loss)
        self._avg = self.beta*self._avg + (1 - self.beta)*loss
        self.smooth.append(self._avg / (1 - self.beta**len(self.losses)))
        best = min(self.smooth)
        if self.smooth[-1] - best > (self.stop - 1)*abs(best): raise CancelTrainException

    def before_validate(self) -> None: raise CancelEpochException

    def after_fit(self) -> None:
        if self._saved is None: return
        model, opt, rng, gens, cuda = self._saved
        self.model.load_state_dict(model)
        self.opt.load_state_dict(opt)
        self.opt.zero_grad()
        torch.set_rng_state(rng)
        for g, state in gens: g.set_state(state)
        if cuda: torch.cuda.set_rng_state_all(cuda)
        self._saved = None

    def suggest(self) -> float:
        "A tenth of the rate at which the smoothed loss was lowest. ValueError before the callback has run."
        if not self.smooth: raise ValueError("nothing recorded yet: fit with this callback first")
        return self.lrs[self.smooth.index(min(self.smooth))] / 10

    def plot(self, ax: Axes | None = None) -> Axes:
        "The loss over the rate, raw and smoothed, with the suggested rate marked."
        rate = self.suggest()
        ax = ax or plt.subplots(figsize=(6, 3.2))[1]
        ax.plot(self.lrs, self.losses, lw=.8, alpha=.5, label="loss of the batch")
        ax.plot(self.lrs, self.smooth, label="smoothed")
        ax.axvline(rate, color="C3", ls="--", label=f"suggested: {rate:.2g}")
        ax.set(xscale="log", xlabel="learning rate", ylabel="training loss")
        ax.legend()
        return ax
