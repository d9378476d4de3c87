"""Chapter 12c where its notebook need not go: passes that are left and gone on with, and mixed precision's corners."""
import copy
import io
import itertools
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from exp.nb00c import Images
from exp.nb03 import Dataset
from exp.nb08 import DataLoaders
from exp.nb09 import Callback, CancelEpochException, Learner, TrainCB
from exp.nb09b import MomentumLearner, TrainLearner
from exp.nb12c import (
    ChannelsLastCB,
    CompileCB,
    MixedPrecisionCB,
    TensorLoader,
    _autocast_state,
    _put_back,
    _small_as_product,
    fast_dls,
    has_fast_bf16,
    pixel_stats,
)


def loader(bs=4, shuffle=True, drop_last=False, own=False, seed=3):
    g = torch.Generator().manual_seed(seed) if own else None
    return TensorLoader(torch.arange(10.)[:, None], torch.arange(10), bs, shuffle, drop_last, g)


def left(dl):
    return [yb.tolist() for _, yb in dl]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("bs, drop_last", [(1, False), (4, False), (4, True), (5, True), (10, True), (15, False)])
def test_order_of_a_torch_loader(bs, own, drop_last):
    "The same items in the same order, and afterwards the generators are at the same place."
    ours, g = loader(bs, drop_last=drop_last, own=own), torch.Generator().manual_seed(3) if own else None
    ds = Dataset(torch.arange(10.), torch.arange(10))
    theirs = DataLoader(ds, sampler=BatchSampler(RandomSampler(ds, generator=g), bs, drop_last), batch_size=None)
    seen = []
    for dl in (ours, theirs):
        torch.manual_seed(42)
        seen.append((left(dl), left(dl), torch.rand(1)))
    assert seen[0] == seen[1]
    assert not own or ours.generator.get_state().equal(g.get_state())


@pytest.mark.parametrize("shuffle, own", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("n", range(4))
def test_goes_on_after_any_batch(shuffle, own, n):
    "The rest of the pass, the pass after it and both generators are those of a loader that has never stopped."
    torch.manual_seed(42)
    dl = loader(shuffle=shuffle, own=own)
    it = iter(dl)
    for _ in range(n):
        next(it)
    torch.save(dl.state_dict(), buf := io.BytesIO())
    state, rng = torch.load(io.BytesIO(buf.getvalue()), weights_only=True), torch.get_rng_state()
    wanted = [*left(it), *left(dl)] if n else [*left(dl), *left(dl)]
    end = torch.rand(1)
    other = loader(shuffle=shuffle, own=own, seed=9)
    other.load_state_dict(state)
    torch.set_rng_state(rng)
    assert other.start == n
    assert {k: other.state_dict()[k] for k in ("batch", "digest")} == {k: state[k] for k in ("batch", "digest")}
    assert [*left(other), *left(other)] == wanted
    assert other.start == 0 and torch.rand(1) == end
    assert not own or other.generator.get_state().equal(dl.generator.get_state())


def test_between_passes():
    "A pass that was left is over, and so is one that went to its end."
    dl = loader()
    for _ in dl:
        break
    assert dl.state_dict()["batch"] == 0
    left(dl)
    assert dl.state_dict()["batch"] == 0 and dl.state_dict()["digest"] == ""


def test_a_look_in_the_middle():
    "Another pass over the same loader while one is under way does not change where that one is."
    dl = loader()
    it = iter(dl)
    next(it)
    next(iter(dl))
    next(it)
    assert dl.state_dict()["batch"] == 2


@pytest.mark.parametrize("n", [1, 3])
def test_state_put_back_under_way(n):
    "As `trial` does it when a callback tries something: the pass goes on, and the next one begins at its beginning."
    dl = loader()
    it = iter(dl)
    seen = [next(it) for _ in range(n)]
    state = copy.deepcopy(dl.state_dict())
    left(dl)
    dl.load_state_dict(state)
    assert len(seen) + len(left(it)) == len(dl) == 3
    assert dl.start == 0 and len(left(dl)) == 3


def test_refused_state_changes_nothing():
    dl, other = loader(own=True), loader(own=True, seed=4)
    it = iter(dl)
    next(it)
    before = other.generator.get_state()
    for change in ({"items": 9}, {"batch_size": 5}, {"digest": "no"}, {"order": torch.Generator().get_state()}):
        with pytest.raises(ValueError, match="items 9|batch_size 5|not what it was"):
            other.load_state_dict(dl.state_dict() | change)
        assert other.generator.get_state().equal(before) and other.start == 0
    assert len(left(other)) == 3


def test_learner_counts_from_start():
    class Noted(Callback):
        def before_batch(self, learn):
            seen.append((learn.epoch, learn.iter, learn.targets[0].tolist()))

    def fit(dl):
        seen.clear()
        TrainLearner(nn.Linear(1, 10), DataLoaders(dl), F.cross_entropy, cbs=Noted()).fit(2, valid=False)
        return list(seen)
    seen = []
    torch.manual_seed(1)
    whole = fit(loader(own=True))
    dl, other = loader(own=True), loader(own=True, seed=5)
    torch.manual_seed(1)
    it = iter(dl)
    next(it)
    other.load_state_dict(dl.state_dict())
    assert fit(other) == whole[1:]


def little(cbs=(), cls=TrainLearner, model=None, loss=F.cross_entropy, lr=0.1):
    torch.manual_seed(42)
    x, y = torch.randn(40, 16), torch.arange(40) % 3
    model = model or nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    return cls(model, DataLoaders(TensorLoader(x, y, 8)), loss, lr=lr, cbs=list(cbs))


def trained(learn):
    learn.fit(valid=False)
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def moved(learn):
    "What a fit has changed."
    before = torch.cat([p.detach().flatten() for p in learn.model.parameters()])
    return trained(learn) - before


def test_gradients_that_stay_keep_their_scale():
    "`MomentumLearner` (09b) keeps gradients from batch to batch; they are scaled together with the new ones."
    plain, mixed = (moved(little(cbs, MomentumLearner, lr=0.02)) for cbs in ([], [MixedPrecisionCB(torch.float16)]))
    assert (plain - mixed).norm()/plain.norm() < 0.05


def test_predictions_of_any_structure():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(16, 3)

        def forward(self, x):
            return {"scores": self.lin(x), "more": [self.lin(x).argmax(1)]}
    seen = []

    def loss(preds, y):
        seen.extend([preds["scores"].dtype, preds["more"][0].dtype])
        return F.cross_entropy(preds["scores"], y)
    little([MixedPrecisionCB(torch.bfloat16)], model=Two(), loss=loss).fit(valid=False)
    assert set(seen) == {torch.float32, torch.int64}


def test_map_by_name_and_narrow():
    "Convolutions may get their map by its name; narrow ones are padded and keep their output's size."
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3, 2, 1)

        def forward(self, x):
            return self.conv(input=x.view(-1, 1, 4, 4)).mean((2, 3)) + self.conv(x.view(-1, 1, 16, 1)).mean((2, 3))
    learn = little([MixedPrecisionCB(torch.bfloat16)], model=Named())
    plain, seen = copy.deepcopy(learn.model), []
    hook = learn.model.register_forward_hook(lambda m, args, out: seen.append((args[0], out.detach().float())))
    learn.fit(valid=False, lr=1e-9)
    hook.remove()
    assert seen and all(torch.allclose(out, plain(x), atol=0.05) for x, out in seen)
    assert not learn.model.conv._forward_hooks


def test_state_of_scaler_and_callback():
    (learn := little([mp := MixedPrecisionCB(torch.float16)])).fit(valid=False)
    mp.scaler.update(8.)
    mp.skipped = 3
    torch.save(mp.state_dict(), file := io.BytesIO())
    again = MixedPrecisionCB(torch.float16)
    little([again]).fit(valid=False)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    state = again.scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"], again.skipped) == (8., len(learn.dls.train), 3)


def test_every_optimiser_of_a_learner_gets_unscaled_gradients():
    "One that steps a second optimiser, over some of the weights."
    class Two(TrainLearner):
        def step(self):
            super().step()
            self.other.step()

        def zero_grad(self):
            super().zero_grad()
            self.other.zero_grad()
    ends = []
    for cbs in ([], [MixedPrecisionCB(torch.float16)]):
        learn = little(cbs, Two)
        learn.other = torch.optim.SGD(learn.model[0].parameters(), 0.1)
        learn.opt_func = lambda params, lr: torch.optim.SGD([*params][2:], lr)
        ends.append(moved(learn))
    assert (ends[0] - ends[1]).norm()/ends[0].norm() < 0.05


def test_weights_of_the_loss_get_unscaled_gradients():
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(3))

        def forward(self, preds, y): return F.cross_entropy(preds*self.w, y)
    ends = []
    for cbs in ([], [MixedPrecisionCB(torch.float16)]):
        learn = little(cbs, loss=(own := Weighted()))
        learn.opt_func = lambda params, lr, own=own: torch.optim.SGD([*params, *own.parameters()], lr)
        trained(learn)
        ends.append(own.w.detach() - 1)
    assert (ends[0] - ends[1]).norm()/ends[0].norm() < 0.05


def test_gradients_that_add_up_over_batches():
    "A step after every second batch: each backward leaves unscaled gradients, and the steps are those of float32."
    class Every2(Callback):
        def before_fit(self, learn):
            for k in ("step", "zero_grad"):
                learn.wrap(k, lambda inner: inner() if learn.iter % 2 else None)
    mp = MixedPrecisionCB(torch.float16)
    plain, mixed = (moved(little([*cbs, Every2()])) for cbs in ([], [mp]))
    assert (plain - mixed).norm()/plain.norm() < 0.05 and mp.skipped == 0


def test_a_model_that_is_exchanged_is_not_the_compiled_one():
    "As for averaged weights in validation: predictions are those of the model that is there."
    class Average(Callback):
        def before_validate(self, learn):
            self.raw, learn.model = learn.model, zero

        def after_pred(self, learn):
            seen.append((learn.training, bool((learn.preds == 0).all())))

        def after_epoch(self, learn):
            learn.model = self.raw
    zero, seen = nn.Linear(16, 3), []
    nn.init.zeros_(zero.weight), nn.init.zeros_(zero.bias)
    learn = little([CompileCB(backend="eager"), Average()])
    learn.dls = DataLoaders(learn.dls.train, learn.dls.train)
    learn.fit(1)
    assert set(seen) == {(True, False), (False, True)}


def test_layers_that_do_not_know_their_sizes_yet():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    dls = DataLoaders(TensorLoader(torch.randn(16, 1, 8, 8), torch.arange(16) % 3, 8))
    TrainLearner(model, dls, F.cross_entropy, cbs=[ChannelsLastCB()]).fit(1, valid=False)


@pytest.mark.parametrize("shape", [(50, 28, 28), (50, 31, 17), (50, 3, 32, 32), (50, 1, 9, 9)])
@pytest.mark.parametrize("names", [(), ("cat", "dog", "fish")])
@pytest.mark.parametrize("name", ["mine", "", "mnist"])
def test_images_of_ones_own(shape, names, name):
    "Any name, size and number of channels; classes are called as they are told, or by their numbers."
    x, y = torch.randint(256, shape, dtype=torch.uint8), torch.arange(50) % 3
    images = Images(x, y, x[:20], y[:20], name, names=names)
    dls = fast_dls(images, 16, "cpu")
    assert dls.names == (names or (tuple("0123456789") if name == "mnist" else ("0", "1", "2"))) and dls.real is None
    xb, _ = next(iter(dls.train))
    assert xb.shape == (16, *(shape[1:] if len(shape) == 4 else (1, *shape[1:])))


def test_skipped_step_and_cancelled_epoch():
    "A gradient that is not finite costs one step; cancelling in the middle leaves nothing around the steps."
    class Trouble(Callback):
        def before_fit(self, learn):
            self.hook = learn.model[0].weight.register_hook(lambda g: g*float("nan") if learn.iter == 1 else None)

        def after_batch(self, learn):
            if learn.iter == 2:
                raise CancelEpochException

        def cleanup_fit(self, learn):
            self.hook.remove()
    learn = little([mp := MixedPrecisionCB(torch.float16), Trouble()])
    assert trained(learn).isfinite().all() and (mp.skipped, mp.scaler.get_scale()) == (1, 2.**15)
    assert not {"predict", "backward", "step"} & set(vars(learn))


def test_batches_are_copies():
    dl = TensorLoader(torch.ones(8, 3), torch.zeros(8), 4)
    for xb, yb in dl:
        xb.zero_()
        yb.fill_(7)
    assert dl.dataset.x.equal(torch.ones(8, 3)) and dl.dataset.y.equal(torch.zeros(8))


@pytest.mark.parametrize("ks, stride, pad, dilation, groups", [
    (3, 1, 1, 1, 1), (3, 2, 1, 1, 1), (5, 3, 2, 1, 1), (3, 2, 0, 1, 1), (3, 3, 2, 1, 1), (1, 2, 0, 1, 1),
    (3, 2, 2, 2, 1), (3, 2, 1, 1, 3), ((3, 1), (1, 2), (1, 0), 1, 1)])
def test_small_outputs_are_the_same_again(ks, stride, pad, dilation, groups):
    "What is made again has the values and gradients that it had (in float32, where nothing is wrong with them)."
    torch.manual_seed(42)
    m, made = nn.Conv2d(3, 6, ks, stride, pad, dilation, groups), 0
    for h, w in itertools.product((1, 2, 3, 8, 16), range(1, 7)):
        x = torch.randn(2, 3, h, w, requires_grad=True)
        try:
            out = m(x)
        except RuntimeError:                                # the kernel is larger than the padded map
            continue
        again = _small_as_product(m, (x,), {}, out)
        few, narrow = groups == 1 and out[0, 0].numel() <= 4, out.shape[-1] == 1 < m.stride[1]
        assert (again is not None) == (few or narrow)
        if again is not None:
            made += 1
            assert torch.allclose(again, out, atol=1e-6)
            grads = (torch.autograd.grad(y.pow(2).sum(), (x, m.weight, m.bias)) for y in (out, again))
            for a, b in zip(*grads, strict=True):
                assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)
    assert made


@pytest.mark.parametrize("ks, stride, pad, dilation", [
    (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 0, 2), ((1, 3), (2, 1), (0, 1), 1)])
def test_larger_outputs_stay_and_get_other_ways_back(ks, stride, pad, dilation):
    torch.manual_seed(42)
    m = nn.Conv2d(3, 6, ks, stride, pad, dilation, bias=False)
    for h, w in ((9, 9), (9, 12), (12, 10), (13, 13)):
        x = torch.randn(2, 3, h, w, requires_grad=True)
        out = m(x)
        n = out[0, 0].numel()
        assert n > 4 and _small_as_product(m, (x,), {}, out, small=n - 1) is None
        again = _small_as_product(m, (x,), {}, out, small=n)
        assert again.equal(out) and again.is_contiguous() == out.is_contiguous()
        grads = (torch.autograd.grad(y.pow(2).sum(), (x, m.weight)) for y in (out, again))
        for a, b in zip(*grads, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_net_learns_the_same_with_products():
    def fitted(small):
        torch.manual_seed(42)
        model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 8, 3, 2, bias=False),
                              nn.Flatten(), nn.LazyLinear(2))
        x, y = torch.randn(32, 1, 9, 9), torch.randint(2, (32,))
        model(x)
        dls = DataLoaders([(x, y)]*3)
        TrainLearner(model, dls, F.cross_entropy, 0.01, [MixedPrecisionCB(torch.bfloat16, small)]).fit(2, valid=False)
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.allclose(fitted(4), fitted(49), atol=1e-3)


def test_small_outputs_that_stay_the_librarys():
    "Other padding than zeros, padding by name, no batch."
    for m in (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 4, 3, padding="same")):
        assert _small_as_product(m, (x := torch.randn(2, 3, 2, 2),), {}, m(x)) is None
    m = nn.Conv2d(3, 4, 3, padding=1)
    assert _small_as_product(m, (x := torch.randn(3, 2, 2),), {}, m(x)) is None
    for m in (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=2, bias=False)):       # a bias is in the output; two groups
        assert _small_as_product(m, (x := torch.randn(2, 4, 5, 5),), {}, m(x), small=36) is None


def test_the_librarys_recipe_for_float16_leads_to_the_same_weights():
    learn, other = little([MixedPrecisionCB(torch.float16)]), little()
    model, scaler = other.model.train(), torch.amp.GradScaler("cpu")
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    for xb, yb in other.dls.train:
        with torch.autocast("cpu", torch.float16):
            preds = model(xb)
        scaler.scale(F.cross_entropy(preds.float(), yb)).backward()
        scaler.step(opt), scaler.update()
        opt.zero_grad()
    theirs = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (trained(learn) - theirs).norm()/theirs.norm() < 1e-4


@pytest.mark.parametrize("enters", [0, 1, 3])
def test_autocast_goes_back_to_how_it_was(enters):
    "However deep it was left, or if it was left too early."
    with torch.autocast("cpu", torch.bfloat16):
        inside = _autocast_state("cpu")
        for _ in range(enters):
            torch.autocast("cpu", dtype=torch.float16).__enter__()
        if not enters:
            torch.autocast_decrement_nesting()
        _put_back("cpu", *inside)
        assert _autocast_state("cpu") == inside
    assert _autocast_state("cpu")[:2] == (0, False)


PIXELS, LABELS = (torch.arange(130*16) % 251).to(torch.uint8).view(130, 4, 4), torch.arange(130)


@pytest.mark.parametrize("args, said", [
    ((PIXELS, LABELS[:-1], 50), "same length"), ((PIXELS, LABELS, 0), "at least 1, got 0"),
    ((PIXELS[:0], LABELS[:0], 50), "no batch"), ((PIXELS, LABELS, 409, False, True), "no batch of 409 in 130")])
def test_what_no_loader_can_be_made_of(args, said):
    with pytest.raises(ValueError, match=said):
        TensorLoader(*args)


@pytest.mark.parametrize("pixels", [PIXELS/255, PIXELS.long()])
def test_only_bytes_are_normalised(pixels):
    with pytest.raises(TypeError, match="x must be uint8"):
        TensorLoader(pixels, LABELS, 50, normalize=(0.5, 0.2))
    with pytest.raises(TypeError, match="pixels must be uint8"):
        pixel_stats(pixels)


@pytest.mark.parametrize("args, said", [
    ((PIXELS, LABELS, 50), "batch 1 is not what it was"), ((PIXELS, LABELS.roll(1), 50, True), "batch 1 is not"),
    ((PIXELS, LABELS, 25, True), "size 50, this one has 25"), ((PIXELS[1:], LABELS[1:], 50, True), "items 130, this")])
def test_the_state_of_another_loader_is_refused(args, said):
    "And a loader that has refused one begins at the beginning."
    dl = TensorLoader(PIXELS, LABELS, 50, True)
    it = iter(dl)
    next(it), next(it)
    other = TensorLoader(*args)
    with pytest.raises(ValueError, match=said):
        other.load_state_dict(dl.state_dict())
    assert (other.start, other.state_dict()["batch"]) == (0, 0)


@pytest.mark.parametrize("n", [5000, 0, 1.5])
def test_no_more_images_than_there_are(n):
    images = Images(PIXELS, LABELS % 10, PIXELS[:9], LABELS[:9])
    with pytest.raises(ValueError, match=f"from 1 to 130, got {n}"):
        fast_dls(images, 50, "cpu", n_train=n)


def test_a_processor_unknown_to_torch_is_asked_with_a_stopwatch(monkeypatch):
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert has_fast_bf16("meta") is False
    for seconds, fast in (([1., 2.], True), ([2., 1.], False)):
        monkeypatch.setattr("exp.nb12c.time_it", Mock(side_effect=seconds))     # of bfloat16, of float32
        assert has_fast_bf16.__wrapped__() is fast


class Look(Callback):
    "Collects the types of what a callback can see, and the size of the gradients."
    def before_fit(self, learn):
        self.seen, self.inside, self.norms = set(), set(), []
        self.hook = learn.model.register_forward_hook(lambda m, xb, out: self.inside.add(out.dtype))

    def after_pred(self, learn):
        self.seen.add((learn.training, learn.preds.dtype, torch.is_autocast_enabled("cpu")))

    def after_loss(self, learn):
        self.seen.add(learn.loss.dtype)

    def after_backward(self, learn):
        self.norms.append(nn.utils.clip_grad_norm_(learn.model.parameters(), 1.).item())

    def cleanup_fit(self, learn):
        self.hook.remove()


@pytest.mark.parametrize("cls, steps", [(TrainLearner, []), (Learner, [TrainCB()])])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_inside_are_16_bits_and_callbacks_see_float32(dtype, cls, steps):
    "In training and validation; one that clips gradients gets them unscaled, or all of them would be cut."
    plain, look = Look(), Look()
    for learn in little([plain]), little([look, *steps, MixedPrecisionCB(dtype)], cls):
        learn.dls = DataLoaders(learn.dls.train, learn.dls.train)
        learn.fit(1)
    assert look.inside == {dtype} and look.seen == plain.seen
    assert {o for o in look.seen if isinstance(o, torch.dtype)} == {torch.float32}
    assert look.norms == pytest.approx(plain.norms, rel=0.1)


def test_where_there_is_nothing_to_gain_it_trains_in_float32_and_says_so_once(monkeypatch, capsys):
    monkeypatch.setattr("exp.nb12c.has_fast_bf16", lambda kind: False)
    (learn := little([mp := MixedPrecisionCB()])).fit(1, valid=False)
    learn.fit(1, valid=False)
    assert mp.used == torch.float32 and capsys.readouterr().out.count("no fast 16 bits on cpu") == 1
    assert trained(little([MixedPrecisionCB()])).equal(trained(little()))


def test_what_mixed_precision_refuses():
    class Hopeless(Callback):
        def before_fit(self, learn):
            self.hook = next(learn.model.parameters()).register_hook(lambda g: g*float("nan"))

        def cleanup_fit(self, learn):
            self.hook.remove()
    with pytest.raises(FloatingPointError, match="however small"):
        little([MixedPrecisionCB(torch.float16), Hopeless()]).fit(40, valid=False)
    with pytest.raises(ValueError, match=r"must be torch\.bfloat16"):
        MixedPrecisionCB(torch.float64)
    with pytest.raises(ValueError, match="small must be a whole number"):
        MixedPrecisionCB(small=-1)
    halved = little([MixedPrecisionCB(torch.float16)])
    halved.model.half()
    with pytest.raises(ValueError, match="unscale FP16 gradients"):
        halved.fit(1, valid=False)
