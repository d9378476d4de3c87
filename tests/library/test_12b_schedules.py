"Schedules and recorders: the library's own, resumed in the middle of a fit, and left alone by one that only tries."
import io
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from exp.nb00a import get_state
from exp.nb08 import DataLoaders
from exp.nb09 import Callback, CancelFitException, MetricsCB
from exp.nb09b import TrainLearner
from exp.nb12 import LAMB, SGD, Adam, Momentum, RMSProp
from exp.nb12b import BatchSchedCB, EpochSchedCB, RecorderCB, get_lr, get_mom

SCHEDULES = {"cosine": partial(BatchSchedCB, CosineAnnealingLR),
             "one-cycle": partial(BatchSchedCB, partial(OneCycleLR, max_lr=0.1)),
             "cosine by epoch": partial(EpochSchedCB, CosineAnnealingLR),
             "steps by epoch": partial(EpochSchedCB, partial(lr_scheduler.StepLR, step_size=1, gamma=0.5))}


def learner(cbs):
    torch.manual_seed(0)
    x = torch.randn(24, 3)
    batches = [(b, b.sum(1, keepdim=True)) for b in x.split(4)]
    return TrainLearner(nn.Linear(3, 1), DataLoaders(batches, batches[:1]), nn.functional.mse_loss, 0.01, cbs, Adam)


def recorded(sched):
    rec = RecorderCB(lr=get_lr, mom=get_mom, loss=lambda learn: learn.loss)
    return learner([sched(), rec]), rec


class StopAt(Callback):
    "Keeps what the learner is after so many batches, and leaves."
    order = 2000

    def __init__(self, n):
        self.n = n

    def after_batch(self, learn):
        self.n -= learn.training
        if self.n == 0:
            self.state = torch.load(saved(learn.state_dict()), weights_only=True)
            raise CancelFitException


def saved(state):
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    return file


class GoOn(Callback):
    "Puts the state in and skips the batches that were done."
    order = 2000

    def __init__(self, state, n):
        self.state, self.n, self.i = state, n, 0

    def before_fit(self, learn):
        learn.wrap("one_batch", partial(self.batch, learn))

    def batch(self, learn, one_batch):
        self.i += learn.training
        if self.i > self.n:
            one_batch()
        elif self.i == self.n and learn.training:
            learn.load_state_dict(self.state)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [2, 6, 9])
def test_a_fit_that_was_stopped_goes_on(name, n):
    learn, rec = recorded(SCHEDULES[name])
    learn.fit(3)
    stopped, _ = recorded(SCHEDULES[name])
    stopped.fit(3, cbs=(stop := StopAt(n)))
    again, other = recorded(SCHEDULES[name])
    again.fit(3, cbs=GoOn(stop.state, n))
    assert other.history == rec.history
    assert torch.equal(again.model.weight, learn.model.weight)


def test_a_fit_that_only_tries_leaves_no_trace():
    learn, rec = recorded(SCHEDULES["one-cycle"])
    learn.fit(2)
    history, state = dict(rec.history), learn.cbs[0].sched.state_dict()
    learn.lr_find(plot=False)
    assert rec.history == history and learn.cbs[0].sched.state_dict() == state


# nothing is ever better than the first
PLATEAU = partial(lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs")


@pytest.mark.parametrize("kwargs, watch", [({}, "valid_loss"), (dict(valid=False), "train_loss")])
def test_a_scheduler_that_wants_a_value_gets_the_loss(kwargs, watch):
    learn, seen = learner([MetricsCB(quiet=True), EpochSchedCB(PLATEAU), rec := RecorderCB(lr=get_lr)]), []

    class Noted(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics):
            seen.append(metrics)
            super().step(metrics)
    learn.fit(3, **kwargs)
    assert rec.history["lr"] == [0.01]*12 + [0.005]*6       # the first epoch is the best so far, the second is not
    learn.fit(2, cbs=[EpochSchedCB(Noted)], **kwargs)
    assert seen == [row[watch] for row in learn.metrics.history]


def test_a_scheduler_may_watch_another_column():
    learn, seen = learner([MetricsCB(quiet=True)]), []

    class Noted(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics):
            seen.append(metrics)
    learn.fit(2, cbs=EpochSchedCB(partial(Noted, mode="max"), watch="train_loss"))
    assert seen == [row["train_loss"] for row in learn.metrics.history]
    with pytest.raises(ValueError, match="no 'valid_accuracy', only valid_loss, train_loss"):
        learn.fit(1, cbs=EpochSchedCB(PLATEAU, watch="valid_accuracy"))


class Wants:
    "A scheduler of somebody else's."
    def __init__(self, opt):
        pass

    def step(self, loss, epoch=None):
        raise AssertionError("must not get as far")


@pytest.mark.parametrize("sched", [PLATEAU, Wants])
def test_what_cannot_be_stepped_is_refused_before_training(sched):
    for cb, word in ((BatchSchedCB(sched), "use EpochSchedCB"), (EpochSchedCB(sched), "add a MetricsCB")):
        learn = learner([cb])
        before = learn.model.weight.detach().clone()
        with pytest.raises(ValueError, match=word):
            learn.fit(1)
        assert torch.equal(learn.model.weight, before)


def test_metrics_of_an_earlier_fit_do_not_count():
    learn = learner([])
    learn.fit(1, cbs=MetricsCB(quiet=True))
    with pytest.raises(ValueError, match="add a MetricsCB"):
        learn.fit(1, cbs=EpochSchedCB(PLATEAU))


def test_mistakes_in_making_a_scheduler_name_the_cure():
    with pytest.raises(TypeError, match=r"max_lr.*partial\(OneCycle"):
        learner([BatchSchedCB(OneCycleLR)]).fit(1)
    with pytest.raises(TypeError, match=r"step_size.*partial\(StepLR"):
        learner([EpochSchedCB(lr_scheduler.StepLR)]).fit(1)
    opt = Adam([nn.Parameter(torch.ones(1))], 0.1)
    with pytest.raises(TypeError, match="pass a class or a partial"):
        BatchSchedCB(CosineAnnealingLR(opt, 10))


@pytest.mark.parametrize("rate", [torch.tensor(0.1), np.float64(0.1), np.float32(0.1), np.array([0.1])[0]])
def test_rates_become_floats(rate):
    for make in (SGD, Momentum, RMSProp, Adam, LAMB):
        opt = make([{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(2))], "lr": rate}],
                   lr=rate, wd=np.float64(0.01))
        assert {type(g[k]) for g in opt.param_groups for k in ("lr", "weight_decay")} == {float}
        for p in opt.param_groups[0]["params"]:
            p.grad = torch.ones(2)
        opt.step()
    opt = Adam([nn.Parameter(torch.ones(2))], lr=0.1, betas=[np.float64(0.9), torch.tensor(0.99)])
    assert {type(b) for b in opt.param_groups[0]["betas"]} == {float}
    for sched in (CosineAnnealingLR(opt, 10, eta_min=rate), OneCycleLR(opt, rate, 10)):
        opt.step()
        sched.step()
        torch.load(saved(get_state(sched)), weights_only=True)


@pytest.mark.parametrize("value", [torch.zeros(3), None, "high", [1.]])
def test_the_recorder_names_what_is_no_number(value):
    learn = learner([RecorderCB(lr=get_lr, odd=lambda learn: value)])
    with pytest.raises(TypeError, match="one number a batch, but odd gives"):
        learn.fit(1)


def test_the_recorder_takes_any_number():
    rec = RecorderCB(a=lambda _: np.float32(1), b=lambda _: torch.ones(1, 1), c=lambda _: float("nan"), d=lambda _: 2)
    learner([rec]).fit(1)
    assert [type(vs[0]) for vs in rec.history.values()] == [float]*4
