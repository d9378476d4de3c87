"""Chapter 14b's callbacks together, after kills, in 16 bits, and where something is missing."""
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from exp.nb00c import Images, toy_images
from exp.nb08 import DataLoaders
from exp.nb09 import Accuracy, Callback, MetricsCB, TrainCB
from exp.nb09 import Learner as PlainLearner
from exp.nb09a import LRFinderCB
from exp.nb09b import TrainLearner
from exp.nb12b import BatchSchedCB
from exp.nb12c import MixedPrecisionCB, fast_dls
from exp.nb13b import CheckpointCB
from exp.nb14b import (
    AccumulateCB,
    BestModelCB,
    ClipGradCB,
    CSVLogCB,
    EarlyStopCB,
    FreezeCB,
    GoOnCB,
    TensorBoardCB,
    one_cycle,
    with_rates,
)
from exp.nb15 import EMACB

IMAGES = Images(*toy_images("fashion_mnist", 300, 100), "fashion_mnist", "here")


def learner(*cbs, opt=torch.optim.Adam, lr=0.01, dls=None, model=None) -> TrainLearner:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))
    dls = dls or fast_dls(IMAGES, 30, "cpu")
    return TrainLearner(model, dls, F.cross_entropy, lr, [MetricsCB(Accuracy(), quiet=True), *cbs], opt)


def copy(model) -> dict:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b) -> bool:
    a, b = (m.state_dict() if isinstance(m, nn.Module) else m for m in (a, b))
    return a.keys() == b.keys() and all(v.equal(b[k]) for k, v in a.items())


def column(learn, name: str) -> list:
    return [row[name] for row in learn.metrics.history]


class Kill(Callback):
    def __init__(self, epoch: int, i: int):
        self.where = True, epoch, i

    def before_batch(self, learn):
        if (learn.training, learn.epoch, learn.iter) == self.where:
            raise RuntimeError("killed")


class Spoil(Callback):
    "From an epoch on, the net is worse after each pass."
    kept = ("seen",)

    def __init__(self, epoch: int):
        self.first, self.seen = epoch, 0

    def after_batch(self, learn):
        if learn.training and learn.epoch >= self.first:
            with torch.no_grad():
                learn.model[-1].weight.neg_()


def test_watching_and_accumulating_survive_a_kill(tmp_path):
    def cbs(*more):
        return [EarlyStopCB(patience=2), BestModelCB(), AccumulateCB(4), ClipGradCB(0.5), Spoil(3), *more]
    straight, path = learner(*cbs()), tmp_path/"run.pt"
    straight.fit(20)
    assert len(straight.metrics.history) < 20
    for epoch, i in (1, 2), (3, 7), (4, 9):
        with pytest.raises(RuntimeError, match="killed"):
            learner(*cbs(CheckpointCB(path, 3, resume=True), Kill(epoch, i))).fit(20)
    again = learner(*cbs(CheckpointCB(path, 3, resume=True)))
    again.fit(20)
    assert same(again.model, straight.model) and column(again, "valid_loss") == column(straight, "valid_loss")
    assert again.cbs[1].stopped == straight.cbs[1].stopped and again.cbs[2].epoch == straight.cbs[2].epoch


def test_the_best_model_is_that_which_was_validated_with_averaged_weights():
    learn = learner(EMACB(0.9), BestModelCB("valid_accuracy"), Spoil(3))
    learn.fit(6)
    best = max(column(learn, "valid_accuracy"))
    learn.cbs = [learn.metrics]
    learn.fit(1, train=False)
    assert column(learn, "valid_accuracy") == [best]


def test_best_without_validation_and_by_what_is_high(tmp_path):
    learn = learner(best := BestModelCB("train_accuracy"))
    learn.fit(3, valid=False)
    assert best.best == max(column(learn, "train_accuracy"))
    learn = learner(best := BestModelCB("valid_accuracy", low=True))
    learn.fit(4)
    assert best.best == min(column(learn, "valid_accuracy"))


def test_nothing_is_watched_in_a_trial():
    learn = learner(EarlyStopCB("nowhere"), CSVLogCB("/nowhere/log.csv"))
    assert len(learn.lr_find(plot=False).lrs) > 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_accumulated_and_clipped(dtype):
    learn = learner(MixedPrecisionCB(dtype), AccumulateCB(3), clip := ClipGradCB(0.1), opt=torch.optim.SGD, lr=0.5)
    other = learner(AccumulateCB(3), plain := ClipGradCB(0.1), opt=torch.optim.SGD, lr=0.5)
    learn.fit(2)
    torch.manual_seed(0)
    other.fit(2)
    assert clip.norm > 0.1 and float(clip.norm) == pytest.approx(float(plain.norm), rel=0.2)
    assert column(learn, "valid_loss")[-1] == pytest.approx(column(other, "valid_loss")[-1], rel=0.1)


def test_a_plain_learner_with_train_cb_can_accumulate():
    both = []
    for bs, cbs in ((50, [AccumulateCB(2)]), (100, [])):
        torch.manual_seed(0)
        net, dls = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), fast_dls(IMAGES, bs, "cpu")
        learn = PlainLearner(net, dls, F.cross_entropy, 0.1, [TrainCB(), *cbs])
        learn.fit(1)
        both.append(learn.model[1].weight)
    assert torch.allclose(*both, atol=1e-6)


@pytest.mark.parametrize("opt, cycles", [(torch.optim.SGD, False), (partial(torch.optim.SGD, momentum=0.9), True),
                                         (torch.optim.AdamW, True), (torch.optim.RMSprop, False)])
def test_one_cycle_takes_rates_from_the_groups(opt, cycles):
    learn = learner(opt=opt)
    learn.opt_func = with_rates(opt, {learn.model[1]: 0.1, learn.model: 10})       # the rest of it
    learn.fit_one_cycle(1, 0.01)
    sched = learn.opt
    assert [g["max_lr"] for g in sched.param_groups] == pytest.approx([0.001, 0.1])
    assert [len(g["params"]) for g in sched.param_groups] == [2, 4]
    assert ("max_momentum" in sched.param_groups[0]) == cycles


def test_parts_are_free_again_however_a_fit_ends():
    learn = learner(Kill(0, 3))
    learn.model[4].bias.requires_grad_(False)
    was = copy(learn.model[1]), copy(learn.model[2])
    with pytest.raises(RuntimeError, match="killed"):
        learn.fit(1, cbs=FreezeCB(learn.model[1], learn.model[2]))
    assert same(learn.model[1], was[0]) and same(learn.model[2], was[1])
    assert [p.requires_grad for p in learn.model.parameters()] == [True]*5 + [False]


def torch_dls() -> SimpleNamespace:
    x, y = IMAGES.x_train[:, None].float()/255, IMAGES.y_train
    return SimpleNamespace(train=DataLoader(TensorDataset(x, y), 30, shuffle=True), valid=None)


def test_going_on_with_a_loader_of_torch_s(tmp_path):
    learner(CheckpointCB(tmp_path/"run.pt"), dls=torch_dls()).fit(2, valid=False)
    more, straight = learner(GoOnCB(tmp_path/"run.pt"), dls=torch_dls()), learner(dls=torch_dls())
    straight.fit(3, valid=False)
    more.fit(1, valid=False)
    assert same(more.model, straight.model) and column(more, "epoch") == [0, 1, 2]


def test_going_on_from_the_middle_of_an_epoch_with_another_schedule(tmp_path, capsys):
    with pytest.raises(RuntimeError, match="killed"):
        learner(CheckpointCB(tmp_path/"run.pt", 2), BatchSchedCB(one_cycle), Kill(1, 5)).fit(4)
    more = learner(GoOnCB(tmp_path/"run.pt"), BatchSchedCB(one_cycle), lr=0.002)
    more.fit(2)
    assert "going on after 1 epochs, for 2 more, with a new schedule" in capsys.readouterr().out
    assert column(more, "epoch") == [0, 1, 2] and more.cbs[2].sched.total_steps == 20
    assert more.opt.param_groups[0]["max_lr"] == 0.002
    assert next(iter(more.opt.state.values()))["step"] == 14 + 20       # the optimiser's averages went on


def test_going_on_with_something_else_is_refused(tmp_path):
    learner(CheckpointCB(tmp_path/"run.pt")).fit(1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    with pytest.raises(RuntimeError, match="Error"):
        learner(GoOnCB(tmp_path/"run.pt"), model=other).fit(1)
    (tmp_path/"run.pt").write_bytes((tmp_path/"run.pt").read_bytes()[:-100])
    with pytest.raises(ValueError, match="is no whole checkpoint"):
        learner(GoOnCB(tmp_path/"run.pt")).fit(1)


def test_early_stop_counts_epochs_of_a_fit_that_went_on(tmp_path):
    learner(CheckpointCB(tmp_path/"run.pt"), EarlyStopCB(patience=2), Spoil(2)).fit(3)
    more = learner(GoOnCB(tmp_path/"run.pt"), stop := EarlyStopCB(patience=2), Spoil(0))
    more.fit(10)
    assert (stop.epoch, stop.stopped, len(more.metrics.history)) == (1, 3, 4)


def test_tensor_board_gets_every_number_or_says_what_is_missing(tmp_path, monkeypatch):
    written = []

    class Writer:
        def __init__(self, folder): written.append(folder)
        def add_scalar(self, *args): written.append(args)
        def close(self): written.append("closed")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=Writer))
    learn = learner(TensorBoardCB(tmp_path/"tb"))
    learn.fit(2)
    assert (written[0], written[-1], len(written)) == (str(tmp_path/"tb"), "closed", 2 + 2*5)
    assert {w[0] for w in written[1:-1]} == {"loss/train", "loss/valid", "accuracy/train", "accuracy/valid", "time"}
    assert written[2] == ("accuracy/train", learn.metrics.history[0]["train_accuracy"], 0)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        learn.fit(1)


def test_an_event_file_of_tensor_board(tmp_path):
    pytest.importorskip("tensorboard")
    learner(TensorBoardCB(tmp_path/"tb")).fit(1)
    assert list((tmp_path/"tb").glob("events*"))


def test_every_learner_can_say_what_it_is():
    lazy = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    for learn in (learner(), learner(model=lazy), learner(opt=partial(torch.optim.SGD, momentum=0.9)),
                  learner(dls=DataLoaders(b for b in [])), PlainLearner(lazy, None, None, opt_func=None)):
        assert type(learn).__name__ in repr(learn) and "none yet" in repr(learn)
    assert "train: batches, valid: none" in repr(DataLoaders(b for b in []))
    learn = learner()
    learn.fit(2)
    assert "2 epochs: train_loss" in repr(learn)


def test_a_rate_is_suggested_with_its_reason():
    finder = LRFinderCB()
    finder.lrs = [10**(k/5 - 5) for k in range(30)]
    finder.losses = [2.3 - 1.3/(1 + 2.7**(-2*(k - 15))) + (k > 22)*(k - 22) for k in range(30)]
    found = finder.suggest()
    assert finder.lrs[13] <= found.lr <= finder.lrs[17] and f"{found.lr:.2g}" in found.why
    assert found.why in repr(finder)
