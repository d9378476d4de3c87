"""Training under attack: kills, Ctrl-C, damaged files, NaN. What was promised must hold at every moment."""
import errno
import io
import os
import pickle
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from figures import figure, times
from torch import nn

from exp.nb00a import get_state, loader_state, random_state
from exp.nb03 import Dataset, get_dls
from exp.nb06 import Lambda
from exp.nb08 import DataLoaders
from exp.nb09 import (
    Accuracy,
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    DeviceCB,
    Metric,
    MetricsCB,
)
from exp.nb09a import ProgressCB
from exp.nb09b import GuardCB, MomentumLearner, TrainLearner
from exp.nb10 import ActivationStats, NanCB, set_seed
from exp.nb11 import LSUVCB, BatchTransformCB
from exp.nb12 import LAMB, Adam
from exp.nb12b import BatchSchedCB, EpochSchedCB, RecorderCB
from exp.nb12c import ChannelsLastCB, MixedPrecisionCB, TensorLoader, _autocast_state
from exp.nb13b import CheckpointCB, load_model, read_checkpoint, save_model
from exp.nb13c import pooled_resnet
from exp.nb14 import OnBatch, augmenter, get_preds

pytestmark = pytest.mark.torture

ROOT = Path(__file__).resolve().parents[2]
needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and processes that fork")
EPOCHS, BATCHES = 3, 5


class Killed(BaseException):
    "In place of a kill, where a process for each would take too long: nobody catches it."


class KillAt(Callback):
    "At event number `n` of a fit."
    order = -1000

    def __init__(self, n, how=Killed):
        self.n, self.how = n, how

    def __getattr__(self, name):
        if name.startswith(("before_", "after_")):
            return self.count
        raise AttributeError(name)

    def count(self, learn):
        self.n -= 1
        if self.n == 0:
            if self.how is not signal:
                raise self.how
            os.kill(os.getpid(), signal.SIGKILL)


def data():
    g = torch.Generator().manual_seed(7)
    x = torch.randint(256, (BATCHES*8 - 3, 1, 12, 12), generator=g).to(torch.uint8)
    return x, torch.randint(4, (len(x),), generator=g)


def tensor_dls(**kwargs):
    x, y = data()
    return DataLoaders(TensorLoader(x, y, 8, True, normalize=(0.5, 0.25), **kwargs),
                       TensorLoader(x[:12], y[:12], 8, normalize=(0.5, 0.25)))


def loader_dls(**kwargs):
    x, y = data()
    x = x.float()/255
    return DataLoaders(*get_dls(Dataset(x, y), Dataset(x[:12], y[:12]), 8, torch.Generator().manual_seed(3), **kwargs))


def net():
    return nn.Sequential(pooled_resnet((2, 4), n_out=6), nn.Dropout(0.3), nn.Linear(6, 4))


class ManySources(Callback):
    "Draws from Python's and numpy's generators, the global ones and some of its own."
    kept = "rngs", "seen"

    def __init__(self):
        self.rngs = [random.Random(1), np.random.default_rng(2), np.random.RandomState(3)]
        self.seen = 0

    def before_batch(self, learn):
        x, *ys = learn.batch
        a = random.random() + np.random.rand() + self.rngs[0].random() + self.rngs[1].random() + self.rngs[2].rand()
        self.seen += 1
        learn.batch = x*(1 + a/100 + self.seen/1000), *ys


class Accumulate(Callback):
    "Steps in every third batch only; gradients add up till then."
    kept = ("n",)

    def __init__(self):
        self.n = 0

    def after_backward(self, learn):
        self.n += 1
        if self.n % 3:
            raise CancelBatchException


def sched(make, kind=BatchSchedCB):
    return lambda: kind(make)


def augment():
    return BatchTransformCB(OnBatch(augmenter(("crop", "flip", "erase"), 5, True)), on_val=False)


torch_cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.05)
momentum, adamw = partial(torch.optim.SGD, momentum=0.9), partial(torch.optim.AdamW, weight_decay=0.05)
SETUPS = {  # learner, optimiser, loaders, callbacks
    "sgd": (TrainLearner, torch.optim.SGD, tensor_dls, []),
    "momentum, loader with a generator": (TrainLearner, momentum, loader_dls, []),
    "adamw, one-cycle, augmentation": (TrainLearner, adamw, tensor_dls,
                                       [sched(torch_cycle), augment]),
    "momentum learner": (MomentumLearner, torch.optim.SGD, tensor_dls, []),
    "accumulated gradients": (TrainLearner, adamw, tensor_dls, [Accumulate]),
    "our adam, cosine": (TrainLearner, Adam, loader_dls, [sched(torch.optim.lr_scheduler.CosineAnnealingLR)]),
    "lamb, torch's one-cycle": (TrainLearner, LAMB, tensor_dls, [sched(partial(torch_cycle, cycle_momentum=False))]),
    "steps by epoch": (TrainLearner, momentum, tensor_dls,
                       [sched(partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5), EpochSchedCB)]),
    "bfloat16": (TrainLearner, adamw, tensor_dls, [lambda: MixedPrecisionCB(torch.bfloat16), ChannelsLastCB]),
    "float16": (TrainLearner, adamw, tensor_dls, [lambda: MixedPrecisionCB(torch.float16)]),
    "many generators": (TrainLearner, momentum, loader_dls, [ManySources]),
    "lsuv": (TrainLearner, momentum, tensor_dls, [LSUVCB]),
}


def learner(setup, cbs=(), seed=42):
    make, opt, dls, parts = SETUPS[setup]
    set_seed(seed)
    wanted = [MetricsCB(Accuracy(), quiet=True), RecorderCB(loss=lambda learn: learn.loss), *[p() for p in parts]]
    return make(net(), dls(), F.cross_entropy, 0.05, [*wanted, *cbs], opt)


def fit(learn, n_epochs=EPOCHS):
    "False if the fit was killed."
    try:
        learn.fit(n_epochs)
        return True
    except Killed:
        return False


def resumed_at(learn):
    "The epoch and batch from which the fit went on, or `None`."
    return next(cb.resumed for cb in learn.cbs if isinstance(cb, CheckpointCB))


def flat(o):
    "All that is in a nest of dicts and lists, tensors as bytes."
    if isinstance(o, dict):
        return {k: flat(v) for k, v in o.items() if k != "time"}
    if isinstance(o, (list, tuple)):
        return [flat(v) for v in o if v != {}]
    return (o.shape, o.contiguous().flatten().view(torch.uint8).tolist()) if isinstance(o, torch.Tensor) else o


def outcome(learn):
    "To the last bit: weights, optimiser, what was recorded, what callbacks remember, and what generators draw next."
    return flat([dict(learn.model.state_dict()), learn.opt.state_dict(), [get_state(cb) or {} for cb in learn.cbs],
                 loader_state(learn.dls.train), loader_state(learn.dls.valid), random_state()])


def events_of(setup):
    "How many events a whole fit has, and its outcome."
    counter = KillAt(-1)
    learn = learner(setup, [counter])
    fit(learn)
    return -1 - counter.n, outcome(learn)


# -- kill and resume

@pytest.mark.parametrize("setup", SETUPS)
def test_killed_and_resumed_is_never_killed(setup, tmp_path):
    "At random events, several times in a fit: bit for bit the outcome of a fit that went through."
    events, want = events_of(setup)
    kills = resumed = 0
    for seed in range(times(1, 12)):
        rng, path, every = random.Random(seed), tmp_path / f"{seed}.pt", random.Random(seed).choice([1, 2, 3, 7, None])
        moments = [rng.randint(1, events) for _ in range(3)]
        for n in moments:
            learn = learner(setup, [CheckpointCB(path, every, resume=True), KillAt(n)], seed)    # other initial weights
            kills += not fit(learn)
            resumed += resumed_at(learn) is not None
        learn = learner(setup, [CheckpointCB(path, every, resume=path.exists())], seed if path.exists() else 42)
        assert fit(learn)
        if resumed_at(learn) is None:
            continue                                       # killed before there was a file, each time
        first = learner(setup, seed=seed)
        fit(first)
        assert outcome(learn) == outcome(first), f"seed {seed}, every {every}, killed at events {moments}"
    assert want == events_of(setup)[1] and (resumed or kills == 0 or times(1, 0))
    figure(f"kills of a fit: {setup}", kills=kills, resumed=resumed, different_bits=0)


def test_every_batch_is_a_place_to_go_on_from(tmp_path):
    "The file after each batch of a fit, and after each epoch: going on from any of them gives the same bits."
    setup = "adamw, one-cycle, augmentation"

    class Keep(CheckpointCB):
        def save(self, learn, epoch, batch, *args):
            super().save(learn, epoch, batch, *args)
            (tmp_path / f"{epoch}-{batch}.pt").write_bytes(self.path.read_bytes())
    whole = learner(setup, [Keep(tmp_path / "now.pt", every=1)])
    fit(whole)
    want, places = outcome(whole), [p for p in sorted(tmp_path.glob("*-*.pt"))]
    assert len(places) == EPOCHS*(BATCHES + 1)
    for path in places if times(0, 1) else places[::4]:
        learn = learner(setup, [CheckpointCB(path, resume=True)], seed=1)
        fit(learn)
        assert "{}-{}".format(*resumed_at(learn)) == path.stem
        assert outcome(learn) == want, path.stem


def test_a_fit_that_is_done_stays_done(tmp_path):
    learn = learner("sgd", [CheckpointCB(tmp_path / "c.pt", resume=True)])
    fit(learn)
    want = outcome(learn)
    again = learner("sgd", [CheckpointCB(tmp_path / "c.pt", resume=True), Callback()])
    assert fit(again) and outcome(again) == want and resumed_at(again) == (EPOCHS, 0)
    before = (tmp_path / "c.pt").read_bytes()
    get_preds(again)                                       # no fit that trains: the file stays
    again.lr_find(max_epochs=1, plot=False)
    again.fit(1, train=False)
    assert (tmp_path / "c.pt").read_bytes() == before
    assert fit(again) and outcome(again) != want and resumed_at(again) is None     # the next one begins anew


@pytest.mark.parametrize("mode", ["plain", "terminal"])
def test_progress_of_a_resumed_fit(mode, tmp_path, capsys):
    for n in 20, 50, 10**6:
        learn = learner("sgd", [ProgressCB(mode=mode), CheckpointCB(tmp_path / "c.pt", 2, resume=True), KillAt(n)])
        done = fit(learn)
    progress = next(cb for cb in learn.cbs if isinstance(cb, ProgressCB))
    assert done and len(learn.cbs[0].history) == EPOCHS
    assert (len(progress.losses), len(progress.valid_losses)) == (EPOCHS*BATCHES, EPOCHS)


def test_callbacks_that_cancel(tmp_path):
    "Batches, epochs and fits that others leave early."
    class Leave(Callback):
        def after_loss(self, learn):
            if learn.training and learn.iter == 3 and learn.epoch == 0:
                raise CancelEpochException

        def after_epoch(self, learn):
            if learn.epoch == 1:
                raise CancelFitException
    want = learner("sgd", [Leave()])
    fit(want)
    for n in 12, 20, 10**6:
        learn = learner("sgd", [Leave(), CheckpointCB(tmp_path / "c.pt", 1, resume=True), KillAt(n)])
        done = fit(learn)
    assert done and outcome(learn) == outcome(want)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=needs_fork)])
def test_loaders_that_draw_inside(workers, tmp_path):
    "The order of the epoch is drawn again, with workers too."
    if workers and not times(0, 1):
        pytest.skip("in the long form: workers take seconds to start")

    def made(*cbs):
        set_seed(1)
        dls = loader_dls(num_workers=workers)
        return TrainLearner(net(), dls, F.cross_entropy, 0.05, [*cbs], momentum)
    want = made()
    fit(want)
    assert not fit(made(CheckpointCB(tmp_path / "c.pt", 2), KillAt(60)))
    learn = made(CheckpointCB(tmp_path / "c.pt", resume=True))
    assert fit(learn) and resumed_at(learn) is not None
    assert flat(dict(learn.model.state_dict())) == flat(dict(want.model.state_dict()))


# -- real kills

def in_child(path, setup, every, moment, done):
    "A fit in a process of its own, with its end at a random event."
    torch.set_num_threads(1)
    learn = learner(setup, [CheckpointCB(path, every, resume=True), KillAt(moment, signal)])
    learn.fit(EPOCHS)
    torch.save(dict(learn.model.state_dict()), done)


def save_for_ever(path, saved):
    torch.set_num_threads(1)
    model, i = pooled_resnet((4, 8)), 0
    while True:
        i += 1
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(i)
        save_model(model, path, {"builder": "pooled_resnet", "kwargs": {"nfs": [4, 8]}, "i": i})
        saved.value = i


def run(process, limit=120):
    process.start()
    process.join(limit)
    alive = process.is_alive()
    if alive:
        process.kill()
        process.join()
    assert not alive, "the process hangs"
    return process.exitcode


@needs_fork
def test_sigkill_in_a_fit(forks, tmp_path):
    "A process killed again and again, each time resumed by another one, until the fit is done."
    setup, kills = "adamw, one-cycle, augmentation", 0
    events, _ = events_of(setup)
    for seed in range(times(1, 8)):
        rng, path, done = random.Random(seed), tmp_path / f"{seed}.pt", tmp_path / f"{seed}-done.pt"
        every = rng.choice([1, 2, 4])
        for moment in [rng.randint(20, events - 40) for _ in range(times(2, 4))] + [10**9]:
            code = run(forks.Process(target=in_child, args=(path, setup, every, moment, done)))
            assert code in (0, -signal.SIGKILL), f"seed {seed}"
            kills += code != 0
            if path.exists():
                read_checkpoint(path)
            if code == 0:
                break
        whole = learner(setup)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        fit(whole)
        torch.set_num_threads(threads)
        assert flat(torch.load(done, weights_only=True)) == flat(dict(whole.model.state_dict())), f"seed {seed}"
    assert kills >= times(1, 20)
    figure("SIGKILL in a fit, resumed by another process", kills=kills, different_bits=0)


@needs_fork
def test_sigkill_while_a_model_is_saved(forks, tmp_path):
    "There is always a whole file, the last one or the one that was being written."
    rng, path, saved, litter, n = random.Random(42), tmp_path / "m.pt", forks.Value("i", 0, lock=False), 0, times(5, 60)
    for i in range(n):
        saved.value = 0
        process = forks.Process(target=save_for_ever, args=(path, saved), daemon=True)
        process.start()
        end = time.monotonic() + 60
        while saved.value < 2 and time.monotonic() < end:  # it is at it
            time.sleep(0.001)
        time.sleep(rng.random()*0.02)                      # the random moment
        process.kill()
        process.join()
        model = load_model(path)
        assert model.config["i"] in (saved.value, saved.value + 1), f"kill {i}"
        assert all((p == model.config["i"]).all() for p in model.parameters()), f"kill {i}"
        litter += len(list(tmp_path.glob(".groundup-*.tmp")))
        for f in tmp_path.glob(".groundup-*.tmp"):
            f.unlink()
    figure("SIGKILL while a model is saved", kills=n, damaged=0, temporary_files_left=litter)


# -- files in bad states

@pytest.fixture
def half(tmp_path):
    "A checkpoint in the second epoch of an `sgd` fit."
    path = tmp_path / "half.pt"
    fit(learner("sgd", [CheckpointCB(path, 1), KillAt(60)]))
    assert read_checkpoint(path)["epoch"] == 1 and read_checkpoint(path)["batch"] > 0
    return path


def refused(learn, path, match, n_epochs=EPOCHS):
    "The fit raises, and learner and file are as before; without the file it could be fitted."
    weights, file, attributes = flat(dict(learn.model.state_dict())), path.read_bytes(), set(vars(learn))
    with pytest.raises(ValueError, match=match):
        learn.fit(n_epochs)
    assert flat(dict(learn.model.state_dict())) == weights and path.read_bytes() == file
    assert set(vars(learn)) <= attributes | {"metrics", "passes"}
    learn.cbs = [cb for cb in learn.cbs if not isinstance(cb, CheckpointCB)]
    learn.fit(1)


def test_damaged_files_are_refused(half, tmp_path):
    "Cut short anywhere, or a bit flipped: an error, or the same content; the fit is not touched."
    whole, want, rng = half.read_bytes(), flat(read_checkpoint(half)), random.Random(42)
    cuts = {0, 1, 100, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(times(20, 300)))}
    for cut in cuts:
        half.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="is no whole checkpoint"):
            read_checkpoint(half)
    harmless, n = 0, times(60, 1000)
    for bit in (rng.randrange(len(whole)*8) for _ in range(n)):
        damaged = bytearray(whole)
        damaged[bit//8] ^= 1 << bit % 8
        half.write_bytes(damaged)
        try:
            assert flat(read_checkpoint(half)) == want, f"bit {bit}"
            harmless += 1
        except ValueError as e:
            assert "is no whole checkpoint" in str(e), f"bit {bit}"
    figure("damaged checkpoints", cut_short=len(cuts), bits_flipped=n, read_nevertheless=harmless, wrong_content=0)
    half.write_bytes(whole[:-10])
    refused(learner("sgd", [CheckpointCB(half, 1, resume=True)]), half, "no whole checkpoint")


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


def test_files_of_something_else(half, tmp_path):
    saved, mark = torch.load(half, weights_only=True), tmp_path / "ran"
    config = {"builder": "pooled_resnet", "kwargs": {"nfs": [2, 4]}}
    model = save_model(pooled_resnet((2, 4)), tmp_path / "m.pt", config)
    torch.save(saved | {"callbacks": Bomb(mark)}, bomb := io.BytesIO())
    for content in (model.read_bytes(), pickle.dumps(Bomb(mark)), bomb.getvalue(), b"", b"\0"*999):
        half.write_bytes(content)
        refused(learner("sgd", [CheckpointCB(half, 1, resume=True)]), half, "no whole checkpoint")
    assert not mark.exists()


def test_checkpoints_of_other_fits(half):
    def resumed(change=lambda learn: None, setup="sgd", cbs=()):
        learn = learner(setup, [CheckpointCB(half, 1, resume=True), *cbs])
        change(learn)
        return learn

    def other_model(learn):
        learn.model[2] = nn.Linear(6, 4, bias=False)

    def other_data(learn):
        learn.dls.train.dataset.y[:] = learn.dls.train.dataset.y.flip(0)

    def fewer(learn):
        learn.dls.train.drop_last = True
    refused(resumed(), half, "1 epochs and . batches, more than this fit has", n_epochs=1)
    refused(resumed(other_model), half, "another model: 2.bias .* is extra")
    refused(resumed(fewer), half, "batches: 5 there, 4 here")
    refused(resumed(setup="adamw, one-cycle, augmentation"), half, "optimiser: SGD of .* there, AdamW of .* here; call")
    refused(resumed(setup="momentum learner"), half, "learner: TrainLearner there, MomentumLearner here")
    refused(resumed(cbs=[ManySources()]), half, "callbacks: .*ManySources 1, .* here")
    learn, file = resumed(other_data), half.read_bytes()
    weights = flat([p.detach() for p in learn.model.parameters()])
    with pytest.raises(ValueError, match="is of another fit: batch .* is not what it was: are there other data"):
        learn.fit(EPOCHS)
    assert flat([p.detach() for p in learn.model.parameters()]) == weights and half.read_bytes() == file
    with pytest.raises(ValueError, match="one CheckpointCB is enough"):
        learner("sgd", [CheckpointCB(half), CheckpointCB(half)]).fit(1)
    for every in 0, -1, 1.5, True, "2":
        with pytest.raises(ValueError, match="every must be a whole number"):
            CheckpointCB(half, every)


def test_a_state_that_cannot_be_read_is_not_saved(half):
    class Odd(Callback):
        def state_dict(self): return {"f": Odd()}
        def load_state_dict(self, state): pass
    before = half.read_bytes()
    with pytest.raises(ValueError, match="is a Odd"):
        learner("sgd", [Odd(), CheckpointCB(half, 1)]).fit(1)
    assert half.read_bytes() == before


def test_full_disk_keeps_the_checkpoint(half, monkeypatch):
    def full(fd): raise OSError(errno.ENOSPC, "No space left on device")
    before = half.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        learner("sgd", [CheckpointCB(half, 1, resume=True)]).fit(EPOCHS)
    monkeypatch.undo()
    assert half.read_bytes() == before and not list(half.parent.glob(".groundup-*.tmp"))
    learn = learner("sgd", [CheckpointCB(half, 1, resume=True)])
    assert fit(learn)
    assert outcome(learn) == events_of("sgd")[1]


# -- NaN and inf

class Fault(nn.Module):
    "Multiplies by 1, in batch number `at` (validation counts too) by `by`; forwards, or the gradient."

    def __init__(self, at, by, backward=False):
        super().__init__()
        self.at, self.by, self.backward, self.n = at, by, backward, -1

    def forward(self, x):
        if self.n == self.at and not self.backward:
            return x*self.by
        if self.n == self.at and x.requires_grad:
            x = x.clone()
            x.register_hook(lambda g: g*self.by)
        return x*1


class CountFaults(Callback):
    "A forward pass that only looks for the layer is no new batch."

    def before_batch(self, learn):
        for m in learn.model.modules():
            if isinstance(m, Fault):
                m.n += 1


def faulty(rng, backward=False, thorough=False):
    "A learner with a fault in a random place, where it is and when it shows: (epoch, training?, batch)."
    at, by = rng.randrange(2*(BATCHES + 2)), rng.choice([float("nan"), float("inf")])
    layers = [m for m in net()]
    layers = [*layers[0], *layers[1:]]
    place = rng.randint(2, len(layers) - 1)
    layers.insert(place, Fault(at, by, backward))
    learn = learner("sgd", [CountFaults(), GuardCB(), *[NanCB()]*thorough])
    learn.model = nn.Sequential(*layers)
    epoch, i = divmod(at, BATCHES + 2)
    return learn, place, (epoch, i < BATCHES, i if i < BATCHES else i - BATCHES)


def hooks_on(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(m, k)) for m in model.modules() for k in kinds)


@pytest.mark.parametrize("thorough", [False, True])
def test_nan_guard_names_batch_and_layer(thorough):
    for seed in range(n := times(5, 100)):
        learn, place, (epoch, training, i) = faulty(random.Random(seed), thorough=thorough)
        phase = "training" if training else "validation"
        with pytest.raises(FloatingPointError) as e:
            learn.fit(2)
        e.match(f"{phase} batch {i} of epoch {epoch}, counting from 0: .*the first layer to give (NaN|inf) is {place} "
                "[(]Fault[)]")
        assert hooks_on(learn.model) == 0, f"seed {seed}"
        assert all(p.isfinite().all() for p in learn.model.parameters()), f"seed {seed}"
    figure(f"NaN and inf in a layer{', thorough' if thorough else ''}", faults=n, batch_and_layer_named=n)


def test_nan_guard_names_the_gradient():
    named = 0
    for seed in range(times(5, 100)):
        learn, place, (epoch, training, i) = faulty(random.Random(seed), backward=True, thorough=True)
        if not training:
            continue
        with pytest.raises(FloatingPointError) as e:
            learn.fit(2)
        e.match(f"training batch {i} of epoch {epoch}, .* the gradient becomes (NaN|inf) on the way back from {place} "
                "[(]Fault[)]")
        assert hooks_on(learn.model) == 0 and all(p.isfinite().all() for p in learn.model.parameters())
        named += 1
    figure("NaN and inf in a gradient", faults=named, batch_and_layer_named=named)


def test_nan_guard_elsewhere():
    "In the images, in a weight, in the loss function; with mixed precision; and a rate finder that goes on to inf."
    guard = GuardCB()
    learn = learner("sgd", [guard])
    learn.loss_func = lambda preds, y: F.cross_entropy(preds, y)*float("nan")
    with pytest.raises(FloatingPointError, match="batch 0 of epoch 0.*the loss is NaN: it comes from the loss func"):
        learn.fit(1)
    learn = learner("sgd", [guard])
    learn.cbs.append(BatchTransformCB(lambda b: (b[0].clone().fill_(float("inf")), b[1])))
    with pytest.raises(FloatingPointError, match="batch 0 of epoch 0.*there is inf in its inputs"):
        learn.fit(1)
    learn = learner("bfloat16", [guard])
    with torch.no_grad():
        learn.model[2].weight[1, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="2.weight has NaN in it since an earlier batch"):
        learn.fit(1)
    learner("float16", [NanCB()]).fit(1)
    learn = learner("sgd", [guard])
    learn.lr_find(gamma=10, max_mult=1e30, plot=False)
    assert all(p.isfinite().all() for p in learn.model.parameters())


class Stop(Callback):
    "At a loss that is not finite, without looking for the layer."

    def after_loss(self, learn):
        if not learn.loss.isfinite():
            raise FloatingPointError


def test_looking_for_the_layer_changes_nothing():
    learn, *_ = faulty(random.Random(3))
    plain, *_ = faulty(random.Random(3))
    plain.cbs[-1] = Stop()
    for one in learn, plain:
        set_seed(1)
        with pytest.raises(FloatingPointError):
            one.fit(2)
    same = [torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(learn.model.state_dict().values(),
                                                                      plain.model.state_dict().values(), strict=True)]
    assert all(same)


def test_the_guard_changes_no_bit():
    learn = learner("adamw, one-cycle, augmentation", [NanCB()])
    assert fit(learn)
    plain = learner("adamw, one-cycle, augmentation")
    plain.cbs, plain.guard = [cb for cb in plain.cbs if not isinstance(cb, GuardCB)], None
    assert fit(plain) and outcome(learn) == outcome(plain) == events_of("adamw, one-cycle, augmentation")[1]


# -- Ctrl-C

HERE = (str(ROOT / "exp"), *(str(Path(torch.__file__).parent / p) for p in (
    "nn", "optim", "amp", "utils/_contextlib.py", "autograd/grad_mode.py")))


class Moment:
    "A trace function: counts the lines run under `HERE`, and presses Ctrl-C at the `at`th time of line `where`."

    def __init__(self, where=None, at=0):
        self.where, self.at, self.lines = where, at, {}

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        if event == "line":
            line = frame.f_code.co_filename, frame.f_lineno
            self.lines[line] = self.lines.get(line, 0) + 1
            if line == self.where and self.lines[line] == self.at:
                signal.raise_signal(signal.SIGINT)
        return self

    def during(self, f):
        old = sys.gettrace()
        sys.settrace(self)
        try:
            f()
        finally:
            sys.settrace(old)


def attacked(tmp_path):
    "A learner, what belongs to it, and what a fit adds for its time."
    learn = learner("momentum, loader with a generator", [DeviceCB("cpu")])
    learn.model.insert(0, Lambda(lambda x: x))
    learn.model[1].eval()                                  # a mode of its own, for a part of it
    added = [ActivationStats(every=2), NanCB(), CheckpointCB(tmp_path / "c.pt", 2), ChannelsLastCB(),
             ProgressCB(mode="terminal"), MixedPrecisionCB(torch.bfloat16)]
    return learn, added


def state_of(learn):
    return (list(map(id, learn.cbs)), hooks_on(learn.model), [m.training for m in learn.model.modules()],
            set(vars(learn)) - {"metrics", "passes"}, [p.stride() for p in learn.model.parameters()],
            torch.is_grad_enabled(), _autocast_state("cpu"), signal.getsignal(signal.SIGINT))


ACTS = {"fit": lambda learn, added: learn.fit(2, cbs=added),
        "lr_find": lambda learn, added: learn.lr_find(gamma=3, max_epochs=1, plot=False)}


@pytest.mark.parametrize("act", ACTS)
def test_ctrl_c_at_any_line(act, tmp_path, capsys):
    "A SIGINT at a random line, each line as likely as any other: nothing is left behind, and the learner fits again."
    ACTS[act](*attacked(tmp_path))                         # what is imported at first use is imported now
    learn, added = attacked(tmp_path)
    dry = Moment()
    dry.during(lambda: ACTS[act](learn, added))
    lines, hit, done = sorted(dry.lines), 0, state_of(learn)
    n = times(8, 150) if act == "fit" else times(4, 50)
    for seed in range(n):
        rng = random.Random(seed)
        where = rng.choice(lines)
        at = rng.randint(1, dry.lines[where])
        learn, added = attacked(tmp_path)
        before, told = state_of(learn), f"seed {seed}, {where[0]}:{where[1]}, time {at}"
        try:
            Moment(where, at).during(lambda learn=learn, added=added: ACTS[act](learn, added))
        except KeyboardInterrupt:
            hit += 1
            now = state_of(learn)
            assert now[2] in (before[2], done[2]), told    # the last lines are those of a fit that is done
            assert now[:2] + now[3:] == before[:2] + before[3:], told
        else:
            pytest.fail(f"Ctrl-C was lost, or never pressed: {told}")
        learn.fit(1)
        assert all(p.isfinite().all() for p in learn.model.parameters()), told
    figure(f"Ctrl-C at a random line of {act}", interrupts=hit, anything_left=0)


def test_ctrl_c_at_every_event(tmp_path, capsys):
    "And as an error of a callback, at each event there is."
    learn, added = attacked(tmp_path)
    counter = KillAt(-1)
    learn.fit(2, cbs=[*added, counter])
    total = -1 - counter.n
    some = random.Random(1).sample(range(1, total + 1), times(10, total))
    for n in some:
        learn, added = attacked(tmp_path)
        before = state_of(learn)
        with pytest.raises(KeyboardInterrupt):
            learn.fit(2, cbs=[*added, KillAt(n, KeyboardInterrupt)])
        assert state_of(learn) == before, f"event {n}"
    learn.fit(1)
    figure("KeyboardInterrupt at an event", interrupts=len(some), anything_left=0)


def test_ctrl_c_waits_for_cleaning_up(tmp_path):
    "Pressed twice, the second time while callbacks clean up; and once while they set up."
    class Press(Callback):
        order = -500

        def __init__(self, *events): self.events = set(events)
        def before_fit(self, learn): self.press("before_fit")
        def after_loss(self, learn): self.press("after_loss")
        def cleanup_fit(self, learn): self.press("cleanup_fit")
        def press(self, event):
            if event in self.events:
                signal.raise_signal(signal.SIGINT)
    for events in (("after_loss", "cleanup_fit"), ("before_fit",), ("before_fit", "cleanup_fit"), ("cleanup_fit",)):
        learn, added = attacked(tmp_path)
        before = state_of(learn)
        with pytest.raises(KeyboardInterrupt):
            learn.fit(1, cbs=[Press(*events), *added])
        after = state_of(learn)
        assert (after[:2], after[3:]) == (before[:2], before[3:]), events      # done fits leave modes as ever
        learn.fit(1)


def test_a_mean_goes_on():
    "A `Metric` filled halfway gives the same as one that was not left."
    a, b = Metric(F.mse_loss), Metric(F.mse_loss)
    xs = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(1))
    for x, y in zip(xs[:3], xs[3:], strict=True):
        a.update(x, y)
        left, b = b, Metric(F.mse_loss)
        b.load_state_dict(left.state_dict())
        b.update(x, y)
    assert a.compute() == b.compute()
