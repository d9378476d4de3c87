"""What a fit costs a GPU beside its net: how often the host waits for it, and how many operations it is told to do.

Counted on the rehearsal of CUDA (`make test-rehearsal`), whose `counts()` are what a GPU would be told. A wait stops
the host until all that it has asked for is done; a launch takes a few microseconds of the host, however small it is.
"""
from functools import partial

import pytest
import torch
import torch.nn.functional as F

rehearsal = pytest.importorskip("rehearsal", reason="needs the rehearsal of CUDA: make test-rehearsal")

from exp import nb12  # noqa: E402
from exp.nb08a import to_device  # noqa: E402
from exp.nb09 import Callback, DeviceCB, Order  # noqa: E402
from exp.nb09a import ProgressCB  # noqa: E402
from exp.nb09b import TrainLearner  # noqa: E402
from exp.nb10 import ActivationStats, set_seed  # noqa: E402
from exp.nb12b import RecorderCB, get_lr  # noqa: E402
from exp.nb12c import MixedPrecisionCB, fast_dls  # noqa: E402
from exp.nb13b import CheckpointCB, build  # noqa: E402
from exp.nb14 import augmenter, train  # noqa: E402

BATCHES, MODULES = 32, 12                                   # of a pass; the activations of `get_resnet`
SMALL = {"bs": 4, "n_train": 4*BATCHES, "n_valid": 8, "device": "cuda"}


class Count(Callback):
    "Counts from the second epoch's first batch to its last, with the end of the pass and the row's numbers."
    order = Order.LAST

    def before_epoch(self, learn): rehearsal.reset()
    def before_validate(self, learn): self.waits, self.launches = sum(rehearsal.waits().values()), rehearsal.launches()


def counted(cbs=(), **kwargs) -> tuple[int, float]:
    "Waits of a pass, and launches a batch, of `train` with metrics and progress."
    count = Count()
    train(**SMALL, epochs=2, fast=False, cbs=[*cbs, count, ProgressCB(mode="terminal")], **kwargs)
    return count.waits, count.launches/BATCHES


@pytest.fixture(scope="module")
def bare() -> dict:
    "Launches a batch of the same net and optimiser in a loop of one's own, in float32 and in float16."
    found = {}
    for dtype in (torch.float32, torch.float16):
        set_seed(42)
        net = build({"builder": "get_resnet"}).cuda()
        opt, dl = torch.optim.AdamW(net.parameters(), fused=True), fast_dls("fashion_mnist", 4, "cuda", 32, 8).train
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        for _ in range(2):
            rehearsal.reset()
            for x, y in dl:
                with torch.autocast("cuda", dtype=dtype, enabled=dtype == torch.float16):
                    preds = net(x)
                scaler.scale(F.cross_entropy(preds.float(), y)).backward()
                scaler.step(opt)
                scaler.update()
                opt.zero_grad()
        found[dtype] = rehearsal.launches()/len(dl)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fit_waits_once_in_16_batches_and_adds_few_launches(dtype, bare):
    """GuardCB's look at 16 losses, and at the end of a pass one for each number of the row; float16 looks at its scale
    after 32 batches, 64, and so on. The net alone launches 135 in float32; autocast adds 65."""
    half = [MixedPrecisionCB(torch.float16)] if dtype == torch.float16 else []
    waits, launches = counted([*half, ActivationStats()], augment=True)
    looks = 4*MODULES*-(-BATCHES//10)/BATCHES               # of ActivationStats: mean and std, two for dead, histc
    print(f"{dtype}: bare {bare[dtype]:.1f}, train {launches:.1f}, of which looks {looks:.1f}; waits {waits}")
    assert waits <= BATCHES/16 + 2 + len(half)
    assert launches - looks <= (150 if dtype == torch.float32 else 220)
    assert launches - looks - bare[dtype] <= (15 if dtype == torch.float32 else 17)


@pytest.mark.parametrize("names", ["crop", "flip", "erase", "copy"])
@pytest.mark.parametrize("per_item", [True, False])
def test_augmentation_does_not_wait(names, per_item):
    tfm, x = augmenter(names, 1, per_item), torch.rand(8, 1, 12, 12, device="cuda")
    rehearsal.reset()
    for _ in range(4):
        tfm(x)
    assert not rehearsal.waits() and rehearsal.launches()/4 <= {"crop": 4, "flip": 2, "copy": 45, "erase": 65}[names]


class Overflow(Callback):
    "Gradients of batches from `first` to before `end` are infinite in float16, the loss is not."
    def __init__(self, first, end): self.first, self.end, self.weights = first, end, []
    def before_batch(self, learn): self.weights.append([p.detach().clone() for p in learn.model.parameters()])
    def after_loss(self, learn):
        if self.first <= learn.iter < self.end:
            learn.loss = learn.loss*1e30


def overflown(*args) -> tuple:
    cbs = [DeviceCB("cuda"), over := Overflow(*args), half := MixedPrecisionCB(torch.float16)]
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    opt_func = partial(torch.optim.AdamW, fused=True)
    dls = fast_dls("fashion_mnist", 4, "cuda", 160, 8)
    TrainLearner(net, dls, F.cross_entropy, 1e-3, cbs, opt_func).fit(1, valid=False)
    return over.weights, half


def test_a_fused_step_in_float16_is_left_out_and_counted():
    weights, half = overflown(2, 4)
    same = [all(map(torch.equal, *pair)) for pair in zip(weights, weights[1:], strict=False)]
    assert same == [2 <= i < 4 for i in range(39)] and half.skipped == 2 and type(half.skipped) is int
    assert half.scaler.get_scale() == 2.**14


def test_gradients_that_never_become_finite_are_noticed():
    with pytest.raises(FloatingPointError, match="try bfloat16"):
        overflown(0, 40)


def test_batches_in_pinned_memory_do_not_wait():
    x = torch.rand(8, 3)
    rehearsal.reset()
    assert to_device([x.pin_memory()], "cuda")[0].is_cuda and not rehearsal.waits()
    assert to_device([x], "cuda")[0].is_cuda and len(rehearsal.waits()) == 1


def test_a_checkpoint_waits_a_few_times_however_long_the_history(tmp_path):
    class Watched(CheckpointCB):
        def save(self, *args):
            rehearsal.reset()
            super().save(*args)
            waits.append(sum(rehearsal.waits().values()))
    waits = []
    cbs = [Watched(tmp_path/"c.pt", every=8), ProgressCB(), RecorderCB(loss=lambda learn: learn.loss, lr=get_lr)]
    train(**SMALL, epochs=1, fast=False, quiet=True, cbs=cbs)
    assert len(waits) == 5 and max(waits) <= 8, waits


@pytest.mark.parametrize("name, most", [("Adam", 12), ("LAMB", 25)])
def test_launches_of_a_step_of_our_optimisers(name, most):
    net = build({"builder": "get_resnet"}).cuda()
    opt = getattr(nb12, name)(net.parameters(), lr=1e-3, wd=0.01)
    for _ in range(2):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        rehearsal.reset()
        opt.step()
    assert rehearsal.launches() <= most and not rehearsal.waits()
