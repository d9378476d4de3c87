"""What users met, in chapters 08 to 10, 13a and 13b: each case has the right value, its siblings, the words said."""
import copy
import math
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import exp.nb13a  # noqa: F401  (summary)
from exp.nb00a import keep_random, random_state, set_random_state, set_state
from exp.nb01 import time_it
from exp.nb03 import Dataset, get_dls
from exp.nb08 import DataLoaders, to_tensor
from exp.nb09 import (
    Accuracy,
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    DeviceCB,
    Metric,
    MetricsCB,
    SingleBatchCB,
)
from exp.nb09b import TrainLearner, _meant
from exp.nb10 import ActivationStats, NanCB, is_activation, is_leaf, set_seed
from exp.nb13b import CheckpointCB, read_checkpoint

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(64, 3, generator=G), torch.randint(0, 3, (64,), generator=G)


def loader(*tensors, bs=16): return DataLoader(TensorDataset(*tensors), bs)
def dls(*tensors, bs=16): return DataLoaders(loader(*tensors, bs=bs), loader(*tensors, bs=bs))


def learner(model=None, data=None, loss=F.cross_entropy, lr=0.01, cbs=None, **kwargs):
    torch.manual_seed(1)
    return TrainLearner(model or nn.Linear(3, 3), data or dls(X, Y), loss, lr, cbs, **kwargs)


def note(error): return " ".join(error.value.__notes__)


# -- sizes of batches, however they are nested

class Nested(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.lin, self.kind = nn.Linear(3, 3), kind

    def forward(self, d):
        out = self.lin(d["ids"]*d["mask"] if isinstance(d, dict) else d[0]*d[1])
        return {"logits": out, "size": torch.tensor(3.)} if self.kind == "dict" else (out, [out])


@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_batches_count_by_their_items(kind):
    x = torch.cat([X, torch.full((2, 3), 50.)])
    y = torch.cat([Y, torch.tensor([0, 1])])
    one = torch.ones(3)
    items = [({"ids": a, "mask": one} if kind == "dict" else (a, one), b) for a, b in zip(x, y, strict=True)]

    def loss(preds, t): return F.cross_entropy(preds["logits"] if kind == "dict" else preds[0], t)
    cbs = MetricsCB(m=Metric(loss), quiet=True)
    learn = learner(Nested(kind), DataLoaders(None, DataLoader(items, 32)), loss, cbs=cbs)
    learn.fit(1, train=False)
    with torch.no_grad():
        true = F.cross_entropy(learn.model.lin(x), y).item()
    row = learn.metrics.history[-1]
    assert row["valid_loss"] == pytest.approx(true, rel=1e-5) and row["valid_m"] == pytest.approx(true, rel=1e-5)


def test_metric_without_targets_and_of_several_outputs():
    model = nn.Linear(3, 3)
    learn = learner(model, dls(X), lambda p: p.square().mean(), cbs=MetricsCB(m=Metric(lambda p: p.mean()), quiet=True))
    learn.fit(1)
    assert math.isfinite(learn.metrics.history[-1]["valid_m"])

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 3)
        def forward(self, x): return self.a(x), x.sum(1)
    m = Metric(lambda p, *ts: (p[1] - ts[1]).abs().mean())
    cbs = MetricsCB(m=m, quiet=True)
    learn = learner(Two(), dls(X, Y, X.sum(1)), lambda p, y, s: F.cross_entropy(p[0], y), cbs=cbs)
    learn.fit(1)
    assert learn.metrics.history[-1]["valid_m"] == pytest.approx(0, abs=1e-6)


# -- what is said

def mse(p, t): return (p - t).pow(2).mean()


@pytest.mark.parametrize("preds, target, warned", [
    ((16, 1), (16,), True), ((16,), (16, 1), True), ((16, 1, 4), (16, 4), True), ((16, 1), (16, 1), False),
    ((16, 3), (16, 1), False)])
def test_broadcast_is_warned_once(preds, target, warned):
    class Shape(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(()))
        def forward(self, x): return self.w*torch.ones(preds)
    learn = learner(Shape(), dls(X, torch.ones(64, *target[1:])), mse, 1e-3, MetricsCB(rmse=Metric(mse), quiet=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn.fit(2, valid=False)
    said = [str(w.message) for w in caught if f"predictions {preds} and targets {target}" in str(w.message)]
    assert len(said) == warned


def test_broadcast_in_a_metric_of_classes():
    "Targets that are integers, a loss that is right, a metric that is not."
    def loss(p, t): return F.binary_cross_entropy_with_logits(p[:, 0], t.float())
    right = Metric(lambda p, t: ((p > 0) == t).float().mean())
    learn = learner(nn.Linear(3, 1), dls(X, Y.clamp_max(1)), loss, cbs=MetricsCB(right=right, quiet=True))
    with pytest.warns(UserWarning, match=r"predictions \(16, 1\) and targets \(16,\)"):
        learn.fit(1, valid=False)


class PerClass:
    def __init__(self, value): self.value = value
    def reset(self): pass
    def update(self, p, t): pass
    def compute(self): return self.value


@pytest.mark.parametrize("value", [torch.zeros(2), {"a": 1.}, [1., 2.], None])
def test_metric_that_is_no_number_is_named_after_a_batch(value):
    learn = learner(cbs=MetricsCB(per_class=PerClass(value)))
    with pytest.raises(TypeError, match="the metric 'per_class' gives .*, not one number"):
        learn.fit(1)
    assert (learn.epoch, learn.iter) == (0, 0)
    learn = learner(cbs=MetricsCB(each=Metric(lambda p, t: (p.argmax(1) == t).float()), quiet=True))
    with pytest.raises(TypeError, match="the metric 'each' gives"):
        learn.fit(1)
    for value in (1, np.float32(2), torch.tensor([3.])):
        learner(cbs=MetricsCB(one=PerClass(value), quiet=True)).fit(1)


@pytest.mark.parametrize("name, event", [
    ("on_train_epoch_end", "after_epoch"), ("begin_fit", "before_fit"), ("on_fit_start", "before_fit"),
    ("on_train_batch_start", "before_batch"), ("on_validation_end", "after_epoch"), ("on_epoch_begin", "before_epoch"),
    ("on_train_end", "after_fit"), ("begin_validate", "before_validate"), ("on_backward_end", "after_backward"),
    ("before_step", "after_backward"), ("validation_epoch_end", "after_epoch"), ("befor_fit", "before_fit"),
    ("helper", ""), ("on_click", ""), ("start_server", ""), ("plot_stats", "")])
def test_events_of_other_libraries(name, event):
    assert _meant(name) == event
    cb = type("Names", (Callback,), {name: lambda self, learn: None})()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learner(cbs=cb)
    assert [event in str(w.message) for w in caught] == [True]*bool(event)


def test_parts_that_are_wrong_are_named_before_training():
    class NoLearn(Callback):
        def after_epoch(self): pass
    for make, kind, words in [
            (lambda: learner(cbs=NoLearn()), TypeError, r"NoLearn.after_epoch must take \(self, learn\)"),
            (lambda: learner(loss=nn.CrossEntropyLoss), TypeError, r"pass CrossEntropyLoss\(\)"),
            (lambda: learner(opt_func=torch.optim.Adam([torch.zeros(1, requires_grad=True)])), TypeError, "pass Adam"),
            (lambda: learner(lr="1e-2"), ValueError, "rate must be a number above 0, got '1e-2'"),
            (lambda: MetricsCB([Accuracy()]), TypeError, "pass metrics one by one"),
            (lambda: learner(data=(loader(X, Y),)*2).fit(1), ValueError, r"\(tuple\).*DataLoaders\(train, valid\)"),
            (lambda: learner(data=loader(X, Y)).fit(1), ValueError, r"\(DataLoader\).*DataLoaders\(train, valid\)"),
            (lambda: learner(opt_func=torch.optim.LBFGS).fit(1), TypeError, "missing .* 'closure'")]:
        with pytest.raises(kind, match=words):
            make()

    class Closure(TrainLearner):
        def step(self):
            def closure():
                self.opt.zero_grad()
                loss = self.loss_func(self.model(*self.inputs), *self.targets)
                loss.backward()
                return loss
            self.opt.step(closure)
    Closure(nn.Linear(3, 3), dls(X, Y), F.cross_entropy, 0.1, opt_func=torch.optim.LBFGS).fit(1)


class Two(nn.Module):
    def forward(self, a, b): return a


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.r, self.o = nn.LSTM(1, 8, batch_first=True), nn.Linear(8, 3)
    def forward(self, x): return self.o(self.r(x[..., None])[0][:, -1])


@pytest.mark.parametrize("kwargs, words", [
    (dict(data=dls(X.double(), Y)), ["the model (Linear(in_features=3", "float64", "float32", "x.float()"]),
    (dict(model=nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten()), data=dls(torch.zeros(64, 1, 3, 3).byte(), Y)),
     ["in 0 (Conv2d", "uint8", "x.float()"]),
    (dict(model=Recurrent(), data=dls(X.double(), Y)), ["in r (LSTM", "float64", "x.float()"]),
    (dict(data=dls(X, Y.int())), ["get_loss", "int32", "classes int64"]),
    (dict(model=Two(), data=dls(X, X, Y), opt_func=None), ["in the model (Two", "n_inp"]),
    (dict(data=dls(X)), ["get_loss", "targets none", "the loss the others"]),
    (dict(data=dls(X, Y), model=nn.Linear(3, 3, device="meta")), ["on meta", "add DeviceCB()"]),
    (dict(model=nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 3))), ["in 1 (Linear(in_features=5", "another size"]),
    (dict(model=nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), data=dls(X[:17], Y[:17])),
     ["training batch 1 of epoch 0", "BatchNorm1d", "drop_last=True"])])
def test_notes_say_layer_types_and_what_helps(kwargs, words):
    with pytest.raises((RuntimeError, TypeError, ValueError)) as e:
        learner(**kwargs).fit(1, valid=False)
    assert all(w in note(e) for w in words), note(e)


def test_errors_keep_their_kind_and_name_the_callback():
    "Also those of a device that is lost, of memory, and before the first batch."
    class Fails(Callback):
        def __init__(self, event, e): setattr(self, event, partial(self.fail, e))
        def fail(self, e, learn): raise e
    lost = RuntimeError("CUDA error: device-side assert triggered")
    for kind in (torch.OutOfMemoryError("CUDA out of memory"), lost):
        def loss(p, t, kind=kind): raise kind
        with pytest.raises(type(kind)) as e:
            learner(loss=loss).fit(1)
        assert e.value is kind and "[" not in note(e), note(e)
    for event, place in (("before_fit", "before the first batch"), ("after_loss", "training batch 0 of epoch 0")):
        with pytest.raises(ZeroDivisionError) as e:
            learner(cbs=Fails(event, ZeroDivisionError())).fit(1)
        assert place in note(e) and "Fails.fail" in note(e)


# -- the rate finder and trials

def compare(make):
    "Is a fit the same with and without a search before it?"
    out = []
    for find in (False, True):
        set_seed(0)
        learn = make()
        if find:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                learn.lr_find(plot=False, max_epochs=2)
        learn.fit(1)
        out.append([p.detach().clone() for p in learn.model.parameters()])
    return all(map(torch.equal, *out))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("avg", torch.tensor(1.))
    def forward(self, p, t):
        loss = F.cross_entropy(p, t)
        self.avg.lerp_(loss.detach(), 0.1)
        return loss/self.avg


def kept(opt=torch.optim.Adam, lr=0.05):
    learn = learner(opt_func=None)
    learn.opt = opt(learn.model.parameters(), lr=lr)
    return learn


def test_a_search_is_undone():
    assert compare(lambda: learner(loss=Scaled()))
    assert compare(lambda: learner(nn.Sequential(nn.Linear(3, 9), nn.BatchNorm1d(9), nn.Dropout(), nn.Linear(9, 3))))
    assert compare(kept)
    assert compare(partial(kept, torch.optim.Adagrad))
    learn = kept(lr=torch.tensor(0.05))
    learn.fit(1)
    finder = learn.lr_find(plot=False, gamma=4)
    assert len(set(finder.lrs)) == len(finder.lrs) and all(type(lr) is float for lr in finder.lrs)
    assert isinstance(learn.opt.param_groups[0]["lr"], torch.Tensor)
    assert learn.opt.param_groups[0]["lr"].item() == pytest.approx(0.05)


def test_a_search_that_found_nothing_says_so():
    for guard in (True, False):
        nan = learner(loss=lambda p, t: p.sum()*float("nan"), guard=guard)
        with pytest.raises(FloatingPointError, match="measured nothing"):
            nan.lr_find(plot=False)
    with pytest.warns(UserWarning, match="before the loss grew, at a rate of 0.00011 after 10 batches"):
        learner(data=dls(X[:16], Y[:16])).lr_find(plot=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner().lr_find(plot=False, gamma=4)
        learner(cbs=NanCB()).lr_find(plot=False, gamma=100, max_mult=1e30)


def test_lazy_layers():
    def lazy(): return nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.LazyLinear(3))
    learner(lazy()).fit(1)
    learn = learner(lazy())
    with pytest.raises(ValueError, match="don't know their sizes yet: call it with a batch first"):
        learn.lr_find(plot=False)
    assert learn.summary().total["parameters"] == 16 + 8 + 15
    learn.lr_find(plot=False, gamma=4)


class Ema(Callback):
    def before_fit(self, learn): self.raw, self.ema = learn.model, copy.deepcopy(learn.model)
    def before_validate(self, learn): learn.model = self.ema
    def after_epoch(self, learn): learn.model = self.raw


def test_summary_where_a_callback_swaps_the_model():
    learn = learner(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)), cbs=Ema())
    model = learn.model
    assert [r["parameters"] for r in learn.summary().rows] == [16, 15] and learn.model is model


# -- activations

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.e, self.o, self.unused = nn.Linear(1, 8), nn.Linear(8, 3), nn.ReLU()
    def forward(self, x): return self.o(self.a(self.e(x[..., None])).mean(1))


@pytest.mark.parametrize("model", [Attention, Recurrent])
def test_stats_of_layers_that_return_tuples(model):
    assert not is_activation(nn.MultiheadAttention(8, 2)) and is_activation(nn.ReLU())
    for which in [None]*(model is Attention) + [is_leaf, lambda m: True]:
        stats = ActivationStats(which, every=1)
        if model is Attention and which is None:
            net = nn.Sequential(Attention(), nn.ReLU())
        else:
            net = model()
        learner(net).fit(2, valid=False, cbs=stats)
        assert len(stats) and all(len(h.means) == len(h.at) == len(h.dead) for h in stats)
        assert not [h.name for h in stats if h.name.endswith("unused")]
        stats.color_dim(), stats.dead_chart(), stats.plot_stats()
        import matplotlib.pyplot as plt
        plt.close("all")


# -- data

def test_drop_last_and_shuffle_are_for_training():
    from datasets import Dataset as D
    from datasets import DatasetDict
    ds = Dataset(torch.arange(17.)[:, None], torch.zeros(17).long())
    train, valid = get_dls(ds, ds, 16, drop_last=True)
    assert ([len(x) for x, _ in train], [len(x) for x, _ in valid]) == ([16], [17])
    assert next(iter(get_dls(ds, None, 8, shuffle=False)[0]))[0][:, 0].tolist() == list(range(8))
    dd = DatasetDict(train=D.from_dict({"x": [float(i) for i in range(40)], "y": [0]*40}),
                     test=D.from_dict({"x": [0.]*21, "y": [0]*21}))
    both = DataLoaders.from_dd(dd, 16, drop_last=True)
    assert ([len(b[0]) for b in both.train], [len(b[0]) for b in both.valid]) == ([16, 16], [21])
    assert next(iter(DataLoaders.from_dd(dd, 8, shuffle=False).train))[0].tolist() == list(range(8))
    net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    TrainLearner(net, DataLoaders(*get_dls(ds, None, 16, drop_last=True)), F.cross_entropy).fit(1, valid=False)


@pytest.mark.parametrize("mode", ["1", "L", "P", "PA", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F", "I;16", "HSV"])
def test_white_is_one_in_every_mode(mode):
    if mode == "I;16":
        im = Image.fromarray(np.full((2, 2), 65535, np.uint16))
    else:
        im = Image.new("RGBA" if mode == "PA" else "RGB", (2, 2), "white")
        im = im.convert("P").convert("PA") if mode == "PA" else im.convert(mode)
    assert to_tensor(im).dtype == torch.float32 and to_tensor(im).eq(1).all()


def test_pictures_of_other_kinds():
    red = to_tensor(Image.new("RGB", (2, 2), (255, 0, 0)).convert("P"))
    assert red.shape == (3, 2, 2) and red[:, 0, 0].tolist() == [1, 0, 0]
    assert to_tensor(np.array([[True, False]]))[0, 0].tolist() == [1, 0]
    assert to_tensor(np.array([[255, 0]], np.uint8))[0, 0].tolist() == [1, 0]
    for far in (Image.fromarray(np.full((2, 2), 65535, np.int32)), np.array([[-3.]])):
        with pytest.raises(ValueError, match="should be from 0 to 255"):
            to_tensor(far)


# -- devices, where there is another one (the rehearsal of one counts)

@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_all_parts_are_moved_and_put_back():
    for opt in (torch.optim.Adagrad, partial(torch.optim.Adam, foreach=False)):
        model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        learn = learner(model, loss=Scaled(), cbs=DeviceCB("cuda"), opt_func=opt)
        for do in (learn.summary, partial(learn.lr_find, plot=False, gamma=4)):
            do()
            assert learn.model[0].weight.is_cpu and learn.model[1].running_mean.is_cpu and learn.loss_func.avg.is_cpu
        learn.fit(1)
        assert learn.model[0].weight.is_cuda and learn.loss_func.avg.is_cuda
    kept = learner(opt_func=None)
    kept.opt = torch.optim.Adagrad(kept.model.parameters(), lr=0.1)
    kept.fit(1, cbs=DeviceCB("cuda"))
    assert all(s["sum"].is_cuda for s in kept.opt.state.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_stats_with_deterministic_algorithms():
    set_seed(1, deterministic=True)
    try:
        learner(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), cbs=DeviceCB("cuda")).fit(1, cbs=ActivationStats(every=1))
    finally:
        torch.use_deterministic_algorithms(False)


# -- losses that are looked at later

class Late:
    "A guard that believes that it is not on the CPU: it looks at 16 losses at a time."
    def __enter__(self):
        self.old = torch.Tensor.is_cpu
        torch.Tensor.is_cpu = property(lambda t: False)
    def __exit__(self, *_): torch.Tensor.is_cpu = self.old


class NanAt(Callback):
    def __init__(self, n, then=None): self.n, self.then = n, then
    def before_batch(self, learn):
        if learn.iter == self.n:
            learn.batch = learn.batch[0]*float("nan"), learn.batch[1]
    def after_batch(self, learn):
        if learn.iter == self.n + 1 and self.then:
            raise self.then


@pytest.mark.parametrize("then", [None, CancelFitException(), CancelEpochException(), CancelBatchException()])
def test_nan_is_seen_on_every_way_out_of_a_pass(then):
    with Late(), pytest.raises(FloatingPointError, match="training batch 1 of epoch 0, .*the loss is NaN"):
        learner(cbs=NanAt(1, then)).fit(2)


def test_nan_is_noted_when_something_else_ends_the_pass():
    with Late(), pytest.raises(ZeroDivisionError) as e:
        learner(cbs=NanAt(1, ZeroDivisionError())).fit(1)
    assert "training batch 1 of epoch 0, counting from 0: the loss is NaN" in note(e)


@pytest.mark.parametrize("opt", [torch.optim.SGD, torch.optim.Adam])
def test_fused_optimisers_do_not_step_on_nan(opt, tmp_path):
    path = tmp_path / "c.pt"
    learn = learner(cbs=[NanAt(2), CheckpointCB(path, 2)], opt_func=partial(opt, fused=True))
    with Late(), pytest.raises(FloatingPointError, match="batch 2 of epoch 0"):
        learn.fit(1)
    assert all(p.isfinite().all() for p in learn.model.parameters()) and not hasattr(learn.opt, "found_inf")
    assert read_checkpoint(path)["batch"] == 2


# -- checkpoints

def test_what_cannot_be_saved_is_named_before_training(tmp_path):
    class Odd(Callback):
        def state_dict(self): return {"deep": [1, {"f": {1, 2}}]}
    learn = learner(cbs=[Odd(), CheckpointCB(tmp_path / "c.pt")])
    with pytest.raises(ValueError, match=r"\['cbs'\]\['Odd 1'\]\['deep'\]\[1\]\['f'\] is a set") as e:
        learn.fit(1)
    assert learn.batch is None and "\x1b" not in str(e.value) and "weights_only" not in str(e.value)


@pytest.mark.parametrize("every", [None, 3])
def test_a_fit_goes_on_for_more_epochs(tmp_path, every):
    def fitted(n, **kwargs):
        torch.manual_seed(2)
        learn = learner(nn.Sequential(nn.Linear(3, 5), nn.Dropout(), nn.Linear(5, 3)), cbs=MetricsCB(quiet=True),
                        opt_func=torch.optim.Adam)
        learn.fit(n, cbs=CheckpointCB(tmp_path / "c.pt", every, **kwargs) if kwargs else None)
        return learn
    straight = fitted(4)
    fitted(2, resume=False)
    more = fitted(4, resume=True)
    assert [r["epoch"] for r in more.metrics.history] == [0, 1, 2, 3]
    assert all(map(torch.equal, straight.model.parameters(), more.model.parameters()))
    with pytest.raises(ValueError, match="of 4 epochs and 0 batches, more than this fit has"):
        fitted(3, resume=True)


def test_one_batch_still_ends_a_fit():
    learn = learner(cbs=SingleBatchCB())
    learn.fit(3)
    assert (learn.epoch, learn.iter) == (0, 0)


# -- other inputs of these kinds, found by trying them

class Rows(nn.Module):
    "Takes a batch that `get` makes rows of."
    def __init__(self, get):
        super().__init__()
        self.lin, self.get = nn.Linear(3, 3), get
    def forward(self, batch): return self.lin(self.get(batch))


@pytest.mark.parametrize("kind", ["list of items", "list of dicts", "packed", "named tuple"])
def test_batches_that_are_no_tensor_count_by_their_targets(kind):
    from collections import namedtuple
    Named = namedtuple("Named", "kind ids")
    x, y = torch.cat([X, torch.full((2, 3), 50.)]), torch.cat([Y, torch.tensor([0, 1])])
    make, get = {
        "list of items": (list, torch.stack), "named tuple": (lambda x: Named("a", x), lambda b: b.ids),
        "list of dicts": (lambda x: [{"ids": o} for o in x], lambda b: torch.stack([o["ids"] for o in b])),
        "packed": (lambda x: nn.utils.rnn.pack_sequence([o.expand(len(x), 3) for o in x]),
                   lambda b: nn.utils.rnn.pad_packed_sequence(b)[0][0])}[kind]
    data = DataLoaders(None, [(make(x[:64]), y[:64]), (make(x[64:]), y[64:])])
    learn = learner(Rows(get), data, cbs=[MetricsCB(m=Metric(F.cross_entropy), quiet=True), DeviceCB("cpu")])
    learn.fit(1, train=False)
    true = F.cross_entropy(learn.model.lin(x), y).item()
    assert learn.metrics.history[0]["valid_loss"] == pytest.approx(true, rel=1e-5)
    assert learn.metrics.history[0]["valid_m"] == pytest.approx(true, rel=1e-5)


def test_broadcast_beside_a_loss_among_the_predictions():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 1)
        def forward(self, x): return {"loss": self.lin.weight.sum(), "preds": self.lin(x)}
    learn = learner(Both(), dls(X, X.sum(1)), lambda p, t: mse(p["preds"], t))
    with pytest.warns(UserWarning, match=r"predictions \(16, 1\) and targets \(16,\)"):
        learn.fit(1, valid=False)


@pytest.mark.parametrize("func", [lambda p, t: None, lambda p, t: "good", lambda p, t: {"a": 1.}, lambda p, t: 1/0])
def test_a_metric_that_fails_is_named(func):
    with pytest.raises((TypeError, ZeroDivisionError)) as e:
        learner(cbs=MetricsCB(mine=Metric(func))).fit(1)
    assert "in the metric 'mine'" in note(e)


@pytest.mark.parametrize("kwargs, words", [
    (dict(loss=lambda p, t: None, cbs=MetricsCB(quiet=True)), ["in the metric 'loss'", "one number"]),
    (dict(loss=lambda p, t: F.cross_entropy(p, t).detach()), ["a loss is one number from the predictions"]),
    (dict(opt_func=partial(torch.optim.LBFGS, line_search_fn="strong_wolfe")), ["step", "passes a closure"]),
    (dict(model=nn.BatchNorm1d(3), data=dls((X*9).byte(), Y)), ["uint8", "x.float()"])])
def test_more_notes_say_what_helps(kwargs, words):
    with pytest.raises((RuntimeError, TypeError)) as e:
        learner(**kwargs).fit(1, valid=False)
    assert all(w in note(e) for w in words), note(e)


def test_an_empty_batch_is_called_empty():
    with pytest.raises(FloatingPointError, match="the loss is NaN: its inputs are empty"):
        learner(data=DataLoaders([(X, Y), (X[:0], Y[:0])])).fit(1, valid=False)


class Counts(nn.Module):
    "Model and loss that count their calls in a buffer that is not saved."
    def __init__(self, loss):
        super().__init__()
        self.lin, self.loss = nn.Linear(3, 3), loss
        self.register_buffer("n", torch.ones(()), persistent=False)
    def forward(self, x, *targets):
        self.n = self.n + 1
        return F.cross_entropy(x, *targets)/self.n if self.loss else self.lin(x)/self.n


class Noisy(torch.utils.data.Dataset):
    def __init__(self, generator): self.generator = generator
    def __len__(self): return 64
    def __getitem__(self, i):
        draw = getattr(self.generator, "normal", None) or getattr(self.generator, "gauss", None)
        return X[i] + (draw(0, 1) if draw else torch.randn(3, generator=self.generator)), Y[i]


class KeptEma(Callback):
    kept = ("ema", "sched")
    ema = sched = None
    def before_fit(self, learn):
        self.ema = self.ema or torch.optim.swa_utils.AveragedModel(learn.model)
        self.sched = torch.optim.lr_scheduler.StepLR(learn.opt, 2)
    def after_step(self, learn): self.ema.update_parameters(learn.model), self.sched.step()
    def after_fit(self, learn): learn.model.load_state_dict(self.ema.module.state_dict())


def test_a_search_is_undone_in_buffers_data_sets_and_callbacks():
    assert compare(lambda: learner(Counts(False))) and compare(lambda: learner(loss=Counts(True)))
    assert compare(lambda: learner(cbs=KeptEma()))
    for make in (lambda: torch.Generator().manual_seed(1), lambda: random.Random(1), lambda: np.random.default_rng(1)):
        def noisy(make=make):
            both = Noisy(make())
            return learner(data=DataLoaders(DataLoader(both, 16), DataLoader(both, 16)))
        assert compare(noisy)


@pytest.mark.parametrize("lr", [np.array(0.1), np.float32(0.1), torch.tensor(0.1)])
def test_rates_that_are_arrays(lr, tmp_path):
    learn = learner(cbs=CheckpointCB(tmp_path / "c.pt"), lr=lr, opt_func=torch.optim.Adam)
    learn.fit(1), learn.fit(1, lr=lr), learn.lr_find(plot=False, gamma=9)
    assert float(read_checkpoint(tmp_path / "c.pt")["learner"]["opt"]["param_groups"][0]["lr"]) == pytest.approx(0.1)


def test_floats_up_to_1_are_no_pixels():
    for a in (np.random.default_rng(0).random((2, 2)), np.array([[np.nan, 3]]), np.ones((2, 2, 3), np.float32)):
        with pytest.raises(ValueError, match="should be from 0 to 255"):
            to_tensor(a)
    assert to_tensor(np.array([[0., 255.]])).tolist() == [[[0, 1]]] and not to_tensor(np.zeros((2, 2))).any()


def test_a_sampler_is_for_training():
    from datasets import Dataset as D
    from datasets import DatasetDict
    rows = {"x": [float(i) for i in range(20)], "y": [0]*20}
    dd = DatasetDict(train=D.from_dict(rows), test=D.from_dict(rows))
    both = DataLoaders.from_dd(dd, 4, sampler=[3, 1, 2])
    assert [b[0].tolist() for b in both.train] == [[3, 1, 2]]
    assert torch.cat([b[0] for b in both.valid]).tolist() == rows["x"]


def test_scores_that_are_no_classes_are_refused():
    from exp.nb14 import tta
    x = torch.rand(32, 1, 4, 4)
    for end in (lambda z: z[:, :1], lambda z: z[:, 0], lambda z: (z, z[:, 0]), lambda z: {"logits": z}):
        class Net(nn.Module):
            def __init__(self, end=end):
                super().__init__()
                self.lin, self.end = nn.Linear(16, 3), end
            def forward(self, x): return self.end(self.lin(x.flatten(1)))
        with pytest.raises(ValueError, match=r"not \(n, c\)"):
            tta(learner(Net(), dls(x, Y[:32]), lambda p, t: torch.zeros(())))


def test_any_number_is_better_than_nan():
    from exp.nb14b import BestModelCB, EarlyStopCB
    class First(PerClass):
        def compute(self):
            self.value += 1
            return float("nan") if self.value < 5 else self.value          # two passes an epoch, and two looks
    best, stop = BestModelCB("valid_f"), EarlyStopCB("valid_f", patience=2)
    learner(cbs=[MetricsCB(f=First(0), quiet=True), best, stop]).fit(4)
    assert (best.epoch, stop.epoch, stop.stopped) == (3, 3, None) and best.best == stop.best > 5


def test_a_plateau_of_what_should_rise():
    from exp.nb12b import EpochSchedCB
    rises = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode="max", patience=0)
    for watch, column in ((None, "valid_accuracy"), ("train_accuracy", "train_accuracy")):
        cb = EpochSchedCB(rises, watch)
        learn = learner(cbs=[MetricsCB(Accuracy(), quiet=True), cb])
        learn.fit(3)
        assert cb.sched.best == max(r[column] for r in learn.metrics.history)
    with pytest.raises(ValueError, match="there is no 'metric', only valid_loss, train_loss"):
        learner(cbs=[MetricsCB(quiet=True), EpochSchedCB(rises)]).fit(1)


class Spectrum(nn.Module):
    def forward(self, x): return torch.fft.fft(x)


def test_stats_leave_out_what_has_no_order():
    net = nn.Sequential(Spectrum(), nn.Sequential(), Rows(lambda z: z.real))
    learner(net).fit(1, valid=False, cbs=(stats := ActivationStats(lambda m: True, every=1)))
    assert "0" not in [h.name for h in stats] and len(stats)


# -- the GPU of an Apple, which is not here: a stand-in for what torch.mps has

def test_an_apple_gpu_is_waited_for_and_its_generator_kept(monkeypatch):
    drawn, waits = torch.Generator().manual_seed(3), []
    with monkeypatch.context() as m:
        m.setattr(torch.backends.mps, "is_available", lambda: True)
        for name, f in ("get_rng_state", drawn.get_state), ("set_rng_state", drawn.set_state):
            m.setattr(torch.mps, name, f)
        m.setattr(torch.mps, "synchronize", lambda: waits.append(1))
        with keep_random():
            first = torch.rand(3, generator=drawn)
        assert torch.equal(torch.rand(3, generator=drawn), first)
        time_it(sum, [1], repeats=1)
        assert len(waits) >= 2 and len(waits) % 2 == 0     # before the clock starts, and before it stops
        state = random_state()
    set_random_state(state)                                # read where there is no such device


def test_a_tensor_stays_on_its_device_when_a_state_is_read():
    "A checkpoint is read to the CPU; what a callback keeps belongs beside the weights."
    kept = set_state({"avg": {"w": torch.zeros(2, device="meta")}}, {"avg": {"w": torch.ones(2)}})
    assert kept["avg"]["w"].is_meta
