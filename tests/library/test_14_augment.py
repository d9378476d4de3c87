"""What chapter 14's notebook can't try in passing: odd shapes and types, and `train` misused."""
import copy
import io
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from exp.nb00c import toy_images
from exp.nb08 import DataLoaders
from exp.nb09 import Callback
from exp.nb09a import ProgressCB
from exp.nb09b import TrainLearner
from exp.nb12c import fast_dls
from exp.nb13b import load_model, save_model
from exp.nb13c import pooled_resnet
from exp.nb14 import (
    BatchTfm,
    CapturePredsCB,
    OnBatch,
    RandCopy,
    RandCrop,
    RandErase,
    RandFlip,
    confusion_matrix,
    ensemble,
    flip,
    get_preds,
    probs,
    top_errors,
    train,
    tta,
)

TFMS = [partial(RandCrop, padding=2), RandFlip, RandErase, RandCopy]
CONFIG = {"builder": "pooled_resnet", "kwargs": {"nfs": [4, 8]}}
each_tfm = pytest.mark.parametrize("make", TFMS, ids=lambda f: getattr(f, "func", f).__name__)
both_ways = pytest.mark.parametrize("per_item", [False, True], ids=["batch", "item"])


@pytest.fixture
def xb():
    return torch.randn(6, 3, 20, 17, generator=torch.Generator().manual_seed(1))


# -- augmentations

@each_tfm
@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_keeps_shape_dtype_input_and_range(make, per_item, dtype, xb):
    x = xb.to(dtype)
    before, tfm = x.clone(), make(per_item=per_item, seed=3)
    for _ in range(10):
        out = tfm(x)
        assert (out.shape, out.dtype) == (x.shape, x.dtype)
        assert out.amin() >= x.amin() and out.amax() <= x.amax()
        assert out.data_ptr() != x.data_ptr()
    assert x.equal(before)
    assert tfm.eval()(x) is x


@each_tfm
@both_ways
def test_same_values_in_any_memory_format(make, per_item, xb):
    last = xb.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(make(per_item=per_item, seed=3)(xb), make(per_item=per_item, seed=3)(last), atol=1e-6)


@each_tfm
@both_ways
def test_copies_go_on_from_where_the_original_was(make, per_item, xb):
    tfm = make(per_item=per_item, seed=3)
    tfm(xb)
    twins = [copy.deepcopy(tfm), pickle.loads(pickle.dumps(tfm))]
    want = [tfm(xb) for _ in range(3)]
    for twin in twins:
            assert all(a.equal(twin(xb)) for a in want)


@each_tfm
@both_ways
def test_a_state_goes_on_from_where_it_was_taken(make, per_item, xb):
    one, other = (OnBatch(nn.Sequential(make(per_item=per_item, seed=s), RandFlip(seed=s))) for s in (3, 4))
    one((xb, 0))
    torch.save(one.state_dict(), file := io.BytesIO())
    file.seek(0)
    want = [one((xb, 0))[0] for _ in range(3)]
    other((xb, 0))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert all(a.equal(other((xb, 0))[0]) for a in want)


@each_tfm
def test_without_a_seed_torchs_generator_is_used(make, xb):
    torch.manual_seed(5)
    first = [make()(xb) for _ in range(5)]
    torch.manual_seed(5)
    assert all(a.equal(make()(xb)) for a in first)


@each_tfm
def test_with_a_seed_torchs_generator_is_left_alone(make, xb):
    state = torch.get_rng_state()
    make(seed=3)(xb), make(seed=3, per_item=True)(xb)
    assert torch.get_rng_state().equal(state)


@each_tfm
@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 2), (0, 1, 20, 20), (1, 1, 1, 20, 20)])
def test_refuses_what_is_no_batch_of_images(make, shape):
    with pytest.raises(ValueError, match=r"\(n, c, h, w\), got shape"):
        make()(torch.zeros(shape))


@pytest.mark.parametrize("seed", ["x", 1.5, True, -1])
def test_refuses_other_seeds(seed):
    with pytest.raises(ValueError, match="seed must be a whole number"):
        RandFlip(seed=seed)


def test_a_new_augmentation_needs_change():
    with pytest.raises(NotImplementedError, match="no method change"):
        BatchTfm()(torch.zeros(1, 1, 2, 2))


@both_ways
def test_crop_pads_each_channel_with_its_own_background(per_item):
    x = torch.stack([torch.full((8, 8), v) for v in (-1., 0., 5.)]).expand(4, 3, 8, 8)
    assert RandCrop(padding=3, per_item=per_item, seed=1)(x).equal(x)


@both_ways
def test_crop_takes_bytes(per_item):
    x = torch.randint(256, (5, 1, 10, 12), dtype=torch.uint8)
    out = RandCrop(2, per_item, seed=1)(x)
    assert (out.shape, out.dtype) == (x.shape, torch.uint8)


@pytest.mark.parametrize("padding", [-1, 1.5, True, "2"])
def test_crop_refuses_nonsense(padding):
    with pytest.raises(ValueError, match="padding must be a whole number"):
        RandCrop(padding)


@pytest.mark.parametrize("p", [10, 20, 30])
def test_crop_refuses_padding_as_large_as_the_image(p):
    with pytest.raises(ValueError, match=f"padding {p} is not smaller than the image, 10×20"):
        RandCrop(padding=p)(torch.zeros(1, 1, 10, 20))


@pytest.mark.parametrize("cls", [RandErase, RandCopy])
@pytest.mark.parametrize("pct", [0, 1, -0.2, 7, "0.2", None, True])
def test_blocks_refuse_shares_that_are_none(cls, pct):
    with pytest.raises(ValueError, match="pct must be a number above 0 and below 1"):
        cls(pct)


@pytest.mark.parametrize("cls", [RandErase, RandCopy])
@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_blocks_refuse_other_numbers(cls, n):
    with pytest.raises(ValueError, match="max_num must be a whole number"):
        cls(max_num=n)


def test_erase_refuses_bytes():
    with pytest.raises(ValueError, match="floating-point"):
        RandErase()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@both_ways
@pytest.mark.parametrize("cls", [RandErase, RandCopy])
def test_blocks_in_an_image_of_one_value_change_nothing(cls, per_item):
    x = torch.full((4, 1, 9, 9), 3.)
    for _ in range(10):
        assert cls(per_item=per_item, seed=1)(x).equal(x)


@both_ways
def test_erase_changes_at_most_so_many_blocks_of_that_size(per_item):
    x = torch.arange(400.).reshape(1, 1, 20, 20).expand(8, 1, 20, 20)
    areas = [int((o != i).sum()) for s in range(40)
             for o, i in zip(RandErase(0.25, 3, per_item, s)(x), x, strict=True)]
    assert 0 in areas and max(areas) <= 3*5*5 and max(areas) > 2*5*5


def test_the_number_of_blocks_is_evenly_spread():
    "With blocks that can't overlap much, the changed area tells the number."
    x = torch.rand(4000, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    changed = (RandErase(0.025, 3, True, seed=1)(x) != x).flatten(1).sum(1)
    shares = torch.bincount(changed, minlength=4)[:4]/len(x)
    assert (shares - 0.25).abs().max() < 0.04


@both_ways
def test_copy_takes_only_from_the_same_image(per_item):
    x = torch.arange(5.)[:, None, None, None] + torch.rand(5, 2, 12, 12)/2
    for s in range(10):
        for o, i in zip(RandCopy(0.3, 4, per_item, s)(x), x, strict=True):
            for c in range(2):
                assert torch.isin(o[c], i[c]).all()


@pytest.mark.parametrize("cls", [RandErase, RandCopy])
def test_blocks_are_written_where_they_do_not_overlap(cls, xb, monkeypatch):
    "Into the pixels of a plain copy, each pixel once: not into a view in which a pixel is in many windows."
    put = torch.Tensor.__setitem__

    def watched(self, where, value):
        assert self.is_contiguous() and torch.ones_like(self).index_put(
            where, torch.tensor(1.), accumulate=True).max() <= 2
        put(self, where, value)
    monkeypatch.setattr(torch.Tensor, "__setitem__", watched)
    torch.use_deterministic_algorithms(True)
    try:
        cls(per_item=True, seed=1)(xb), cls(seed=1)(xb)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("per_item", [False, True])
def test_blocks_are_where_slices_would_put_them(per_item, xb):
    x, tfm, twin = xb, RandCopy(0.3, 3, per_item, seed=4), RandCopy(0.3, 3, per_item, seed=4)
    (n, _, h, w), (sh, sw) = x.shape, (6, 5)
    for _ in range(10):
        out, count = x.clone(), twin.randint(4, n)
        for k in range(int(count.max())):
            i, j, a, b = (twin.randint(m, n) for m in (h - sh + 1, w - sw + 1)*2)
            for m in (count > k).nonzero()[:, 0].tolist():
                out[m, :, i[m]:i[m] + sh, j[m]:j[m] + sw] = x[m, :, a[m]:a[m] + sh, b[m]:b[m] + sw]
        assert tfm(x).equal(out)


@each_tfm
def test_a_batch_with_targets_names_the_cure(make, xb):
    with pytest.raises(ValueError, match="got a tuple: OnBatch takes tuples"):
        make()((xb, torch.zeros(6)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return pooled_resnet((4, 8)).eval()


# -- predictions

@pytest.fixture(scope="module")
def images():
    return toy_images("fashion_mnist", 300, 101)


@pytest.fixture
def learn(images, model):
    return TrainLearner(model, fast_dls(images, 32, "cpu"), nn.functional.cross_entropy)


def test_predictions_are_those_of_the_model(learn, model, images):
    preds, targs = get_preds(learn)
    x = torch.cat([x for x, _ in learn.dls.valid])
    with torch.no_grad():
        want = model.eval()(x)
    assert torch.allclose(preds, want, atol=1e-4) and targs.equal(images.y_valid)
    with torch.no_grad():
        mirrored = model(flip(x))
    mean = (want.softmax(1) + mirrored.softmax(1))/2
    assert torch.allclose(tta(learn)[0], mean, atol=1e-5)
    assert torch.allclose(ensemble([learn, mirrored]), mean, atol=1e-5)


class OwnOrder:
    "A loader with an order of its own in each pass, which nobody can put back."
    def __init__(self, x, y, bs=32):
        self.x, self.y, self.bs, self.passes = x, y, bs, 0

    def __len__(self):
        return -(-len(self.x)//self.bs)

    def __iter__(self):
        self.passes += 1
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.passes))
        return iter([(self.x[i], self.y[i]) for i in order.split(self.bs)])


@pytest.fixture
def bars():
    "A learner that is always right, a mirror changes nothing, and no two passes have the same order."
    y = torch.arange(200) % 4
    x = torch.zeros(200, 1, 16, 16)
    for i, k in enumerate(y):
        x[i, 0, 4*k:4*k + 2] = 1
    model = nn.Sequential(nn.AvgPool2d((4, 16)), nn.Flatten(), nn.Linear(4, 4))
    with torch.no_grad():
        model[2].weight.copy_(10*torch.eye(4))
        model[2].bias.zero_()
    dl = OwnOrder(x, y)
    return TrainLearner(model, DataLoaders(dl, dl), nn.functional.cross_entropy)


def test_whatever_the_order_of_a_pass_views_are_of_the_same_image(bars):
    for preds, targs in (get_preds(bars), tta(bars), tta(bars, (flip, flip))):
        assert preds.argmax(1).equal(targs) and len(targs) == 200
    assert bars.dls.valid.passes == 3                       # one each


def test_members_with_other_targets_are_refused(bars):
    one, other = get_preds(bars), get_preds(bars)
    assert not one[1].equal(other[1])
    for members in ([bars, bars], [one, other], [bars, one], [one, (other[0][:9], other[1][:9])]):
        with pytest.raises(ValueError, match="targets differ, or their order"):
            ensemble(members)
    assert torch.allclose(ensemble([one, one]), probs(one[0]), atol=1e-6)
    assert torch.allclose(ensemble([one, tta(bars)[0]*0 + one[0]]), probs(one[0]), atol=1e-6)


class Several(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.lin = kind, nn.Linear(3, 2)

    def forward(self, x):
        return {"dict": lambda a: {"a": a, "more": [a.sum(1)]}, "tuple": lambda a: (a, a + 1)}[self.kind](self.lin(x))


@pytest.mark.parametrize("n_targets", [0, 1, 2])
@pytest.mark.parametrize("kind", ["dict", "tuple"])
def test_several_outputs_and_any_number_of_targets(kind, n_targets):
    x, y = torch.randn(10, 3), torch.arange(10)
    dl = [(x[i], *[y[i]]*n_targets) for i in (slice(0, 6), slice(6, 10))]

    def loss(preds, *targets):
        assert targets, "there is nothing to compare with"
        return next(iter(preds.values() if kind == "dict" else preds)).sum()
    learn = TrainLearner(Several(kind), DataLoaders(dl, dl), loss)
    preds, targs = get_preds(learn)
    with torch.no_grad():
        want = learn.model(x)
    if kind == "dict":
        assert preds["a"].allclose(want["a"]) and preds["more"][0].allclose(want["more"][0])
    else:
        assert type(preds) is tuple and all(a.allclose(b) for a, b in zip(preds, want, strict=True))
    if n_targets == 0:
        assert targs is None
    elif n_targets == 1:
        assert targs.equal(y)
    else:
        assert all(t.equal(y) for t in targs) and len(targs) == 2


def test_a_failing_view_leaves_the_learner_as_it_was(learn):
    class Quiet(Callback):
        on_trial = False
    learn.cbs, learn.opt = [Quiet()], torch.optim.SGD(learn.model.parameters(), 0.1)
    cbs, opt = learn.cbs, learn.opt
    def fail(x): raise RuntimeError("no")
    with pytest.raises(RuntimeError, match="no"):
        tta(learn, (fail,))
    assert learn.cbs is cbs and learn.opt is opt


def test_capture_keeps_the_last_epoch_and_knows_training_from_validation(learn, images):
    capture = CapturePredsCB()
    learn.fit(2, lr=1e-4, cbs=capture)
    assert capture.preds.shape == (101, 10) and capture.targs.equal(images.y_valid)
    learn.fit(1, valid=False, lr=1e-4, cbs=capture)
    assert len(capture.preds) == 101


def test_ensemble_refuses_what_does_not_fit():
    with pytest.raises(RuntimeError, match="equal size"):
        ensemble([torch.zeros(3, 2), torch.zeros(3, 3)])
    with pytest.raises(ValueError, match="NaN"):
        probs(torch.tensor([[float("nan"), 1.]]))


def test_matrix_of_mistakes_counts_as_a_loop_does():
    g = torch.Generator().manual_seed(1)
    preds, targs = torch.randint(5, (300,), generator=g), torch.randint(4, (300,), generator=g)
    want = [[sum(p == j and t == i for p, t in zip(preds.tolist(), targs.tolist(), strict=True)) for j in range(5)]
            for i in range(5)]
    assert confusion_matrix(preds, targs, 5).tolist() == want


def test_surest_errors_first_whether_logits_or_probabilities():
    logits = torch.tensor([[9., 0, 0], [0, 3, 0], [0, 0, 5], [1, 0, 0]])
    targs = torch.tensor([0, 0, 0, 1])
    for scores in (logits, logits.softmax(1)):
        idxs, guesses, sure = top_errors(scores, targs, 2)
        assert idxs.tolist() == [2, 1] and guesses.tolist() == [2, 1]
        assert torch.allclose(sure, logits.softmax(1)[idxs].amax(1))


# -- train

@pytest.fixture
def small(monkeypatch, images):
    monkeypatch.setattr("exp.nb12c.get_images", lambda name, quiet=False: images)
    return dict(bs=50, epochs=1, model=CONFIG, device="cpu", fast=False)


def test_trains_and_saves(small, tmp_path, capsys):
    steps = []

    class Count(Callback):
        def after_batch(self, learn): steps.append(learn.training)
    learn = train(**small, augment="crop,flip,erase,copy", save=tmp_path/"m.pt", cbs=Count())
    out = capsys.readouterr().out
    assert "with crop,flip,erase,copy" in out and "generated images" in out and str(tmp_path/"m.pt") in out
    assert steps.count(True) == 6
    assert load_model(tmp_path/"m.pt").config["accuracy"] == learn.metrics.history[-1]["valid_accuracy"]


def test_same_seed_same_result(small):
    accs = [train(**small, augment=True, quiet=True, seed=s).metrics.history[-1]["train_loss"] for s in (1, 1, 2)]
    assert accs[0] == accs[1] != accs[2]


def test_quiet_says_nothing(small, capsys):
    train(**small, quiet=True)
    assert capsys.readouterr() == ("", "")


def test_a_last_batch_of_one_image_is_left_out(small):
    learn = train(**small, n_train=251, quiet=True)
    assert len(learn.dls.train) == 5


def test_somebody_elses_progress_is_the_only_one(small, capsys):
    class Mine(ProgressCB):
        pass
    learn = train(**small, cbs=Mine())
    assert [type(cb) for cb in learn.cbs if isinstance(cb, ProgressCB)] == [Mine]
    assert any(isinstance(cb, ProgressCB) for cb in train(**small).cbs)


@pytest.mark.parametrize("kwargs, message", [
    (dict(dataset="cifar"), "unknown image set 'cifar'"), (dict(epochs=0), "epochs must be a whole number"),
    (dict(epochs=2.5), "epochs"), (dict(epochs=True), "epochs"), (dict(lr=0), "lr must be a number above 0"),
    (dict(lr="1e-2"), "lr"), (dict(lr=float("nan")), "lr"), (dict(bs=1), "bs must be a whole number, at least 2"),
    (dict(bs="64"), "bs"), (dict(device="gpu"), "device 'gpu' can't be used"), (dict(device=7.5), "device"),
    (dict(augment="crop,blur"), "no augmentation 'blur'"),
    (dict(seed=-1), "seed"), (dict(save=""), "can't save to"), (dict(wd=-0.1), "wd"), (dict(seed=2**64), "seed"),
    (dict(save=str(Path(__file__).parent)), "can't save to"),
    (dict(save=__file__ + "/m.pt"), "can't save to"), (dict(model="vgg"), "no builder 'vgg'"),
    (dict(model={"builder": "pooled_resnet", "kwargs": {"depth": 3}}), "pooled_resnet can't be called")])
def test_misuse_is_refused_before_anything_is_loaded(kwargs, message, monkeypatch):
    monkeypatch.setattr("exp.nb14.fast_dls", lambda *a, **k: pytest.fail("went on to the data"))
    with pytest.raises(ValueError, match=message):
        train(**kwargs)


def test_saved_weights_want_the_same_architecture(small, tmp_path, model):
    path = save_model(model, tmp_path/"m.pt", CONFIG | {"kwargs": {"nfs": [4, 8], "n_out": 10}})
    learn = train(**small, weights=path, quiet=True)
    assert learn.config["kwargs"] == {"nfs": [4, 8], "n_out": 10}
    with pytest.raises(ValueError, match="holds .*pooled_resnet.*, not .*get_resnet"):
        train(**small | dict(model="get_resnet"), weights=path)
    assert train(**small | dict(model="pooled_resnet"), weights=path, quiet=True).config == learn.config | {
        "accuracy": pytest.approx(learn.config["accuracy"])}
    with pytest.raises(FileNotFoundError):
        train(**small, weights=tmp_path/"none.pt")
