"Schedules and recorders: the library's own, resumed in the middle of a fit, and left alone by one that only tries."
import io
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from exp.nb08 import DataLoaders
from exp.nb09 import Callback, CancelFitException
from exp.nb09a import TrainLearner
from exp.nb12 import Adam
from exp.nb12b import BatchSchedCB, CosineAnnealing, EpochSchedCB, OneCycle, RecorderCB, get_lr, get_mom

SCHEDULES = {"cosine": partial(BatchSchedCB, CosineAnnealing),
             "one-cycle": partial(BatchSchedCB, partial(OneCycle, max_lr=0.1)),
             "torch's one-cycle": partial(BatchSchedCB, partial(lr_scheduler.OneCycleLR, max_lr=0.1)),
             "cosine by epoch": partial(EpochSchedCB, CosineAnnealing),
             "torch's steps by epoch": partial(EpochSchedCB, partial(lr_scheduler.StepLR, step_size=1, gamma=0.5))}


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
