"""Chapter 14c's callbacks with others beside them: accumulation, 16 bits, a rate finder, kills; and odd batches."""
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.nb00c import Images, toy_images
from exp.nb09 import Accuracy, Callback, DeviceCB, MetricsCB
from exp.nb09b import TrainLearner
from exp.nb12c import ChannelsLastCB, MixedPrecisionCB, fast_dls
from exp.nb13b import CheckpointCB
from exp.nb13c import pooled_resnet
from exp.nb14 import get_preds
from exp.nb14b import AccumulateCB
from exp.nb14c import GrowCB, MixCB, SqueezeExcite, cutmix, mixup

IMAGES = Images(*toy_images("fashion_mnist", 256, 64), "fashion_mnist", "here")


class SeenCB(Callback):
    "Keeps batch, predictions and loss of each training batch, and the shapes of all."
    def before_fit(self, learn):
        self.seen, self.shapes = [], []

    def after_loss(self, learn):
        self.shapes.append((learn.phase, *learn.batch[0].shape))
        if learn.training:
            self.seen.append((*learn.batch, learn.preds.detach(), learn.loss.item()))


def learner(*cbs, dls=None, loss=F.cross_entropy) -> TrainLearner:
    torch.manual_seed(0)
    dls = dls or fast_dls(IMAGES, 32, "cpu", generator=torch.Generator().manual_seed(0))
    cbs = DeviceCB("cpu"), MetricsCB(Accuracy(), quiet=True), *cbs
    return TrainLearner(pooled_resnet((4, 8)), dls, loss, 0.05, list(cbs))


@pytest.mark.parametrize("loss", [F.cross_entropy, partial(F.cross_entropy, label_smoothing=0.1)])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_the_loss_is_that_of_mixed_targets(kind, loss):
    class Lams(Callback):
        lams = ()
        def after_loss(self, learn):
            if learn.training:
                self.lams += (mix.lam,)
    mix, seen, lams = MixCB(kind), SeenCB(), Lams()
    learner(mix, lams, seen, loss=loss).fit(1)
    for (_, y, preds, got), lam in zip(seen.seen, lams.lams, strict=True):
        rows = F.one_hot(y, 10).float()
        assert got == pytest.approx(loss(preds, rows.lerp(rows.roll(1, 0), 1 - lam)).item(), abs=1e-5)
    assert len(set(lams.lams)) > 4                          # a share of its own for each batch


def test_every_pixel_of_cutmix_is_of_one_of_two_images():
    x = torch.arange(1., 9).reshape(8, 1, 1, 1).expand(8, 3, 12, 9)
    for lam in (0., 0.1, 0.33, 0.5, 0.99, 1.):
        for at in ((0., 0.), (1., 1.), (0.3, 0.8)):
            out, left = cutmix(x, lam, at)
            own, other = out == x, out == x.roll(1, 0)
            assert (own | other).all() and own.float().mean().item() == pytest.approx(left)
            assert abs(left - lam) < 0.09                   # a side is rounded to pixels
            [rows, cols] = (other[0, 0].any(d).nonzero()[:, 0] for d in (1, 0))
            assert other[0, 0].sum() == len(rows)*len(cols)     # one rectangle
    assert x.equal(torch.arange(1., 9).reshape(8, 1, 1, 1).expand(8, 3, 12, 9))


def test_an_image_alone_is_mixed_with_itself():
    x = torch.randn(1, 1, 5, 5)
    assert torch.allclose(mixup(x, 0.3), x) and cutmix(x, 0.3)[0].equal(x)


def test_validation_predictions_and_the_rate_finder_are_as_without():
    plain, mixed = learner(), learner(MixCB("cutmix"), GrowCB(14))
    for a, b in zip(get_preds(plain), get_preds(mixed), strict=True):
        assert a.equal(b)
    before = mixed.state_dict()["cbs"]["MixCB 1"]["rng"]
    mixed.lr_find(plot=False, start_lr=1e-3)
    assert mixed.state_dict()["cbs"]["MixCB 1"]["rng"] == before


def test_a_share_of_the_batches_is_left_alone():
    mix, lams = MixCB("mixup", p=0.5, seed=1), []
    class Lams(Callback):
        def after_loss(self, learn):
            lams.append((learn.training, mix.lam))
    learner(mix, Lams()).fit(6)
    assert all(lam == 1 for training, lam in lams if not training)
    assert 12 < sum(lam == 1 for training, lam in lams if training) < 36        # of 48


def test_all_of_it_works_in_sixteen_bits_and_with_accumulation():
    seen = SeenCB()
    net = nn.Sequential(*pooled_resnet((4, 8))[:2], SqueezeExcite(8), *pooled_resnet((4, 8))[2:])
    cbs = [GrowCB([14, 20]), MixCB("cutmix"), seen, ChannelsLastCB(), MixedPrecisionCB(torch.bfloat16), AccumulateCB(2)]
    learn = learner(*cbs)
    learn.model = net
    learn.fit(3)
    sizes = list(dict.fromkeys(shape[-1] for phase, *shape in seen.shapes if phase == "training"))
    assert sizes == [14, 20, 28] and {shape[-1] for phase, *shape in seen.shapes if phase == "validation"} == {28}
    assert all(torch.isfinite(torch.tensor(loss)) for *_, loss in seen.seen)
    assert not net[2].gate[2].weight.equal(torch.zeros_like(net[2].gate[2].weight))     # it has learnt something


@pytest.mark.parametrize("stop", [(0, 2), (1, 0), (2, 5)])
def test_a_killed_fit_goes_on_with_the_same_shares_and_sizes(tmp_path, stop):
    class Kill(Callback):
        def before_batch(self, learn):
            if learn.training and (learn.epoch, learn.iter) == stop:
                raise RuntimeError("killed")

    def fit(*cbs):
        learn = learner(GrowCB([14]), MixCB("cutmix", 0.5, p=0.8, seed=2), *cbs)
        learn.fit(3)
        return learn.model.state_dict()
    whole, keep = fit(), partial(CheckpointCB, tmp_path / "a.checkpoint", every=1)
    with pytest.raises(RuntimeError, match="killed"):
        fit(keep(), Kill())
    again = fit(keep(resume=True))
    assert all(v.equal(again[k]) for k, v in whole.items())


@pytest.mark.parametrize("x, y, said", [
    (torch.zeros(4, 1, 8, 8), torch.zeros(4, 10), r"got float32 \(4, 1, 8, 8\), float32 \(4, 10\)"),
    (torch.zeros(4, 1, 8, 8), torch.zeros(4), r"float32 \(4,\)"),
    (torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8).long(), r"int64 \(4, 8, 8\)"),
    (torch.zeros(4, 1, 8, 8).byte(), torch.zeros(4).long(), "got uint8"),
    (torch.zeros(4, 64), torch.zeros(4).long(), r"got float32 \(4, 64\)")])
def test_other_batches_are_refused_before_the_net_sees_them(x, y, said):
    class Dls:
        train = valid = [(x, y)]
    with pytest.raises(ValueError, match="MixCB takes floating-point images.*" + said):
        learner(MixCB("mixup"), dls=Dls()).fit(1)


@pytest.mark.parametrize("alpha", [0, -0.5, float("nan"), float("inf"), "1", None])
def test_alpha_is_a_number_above_zero(alpha):
    with pytest.raises(ValueError, match="alpha must be a number above 0"):
        MixCB("cutmix", alpha)


def test_images_that_are_no_squares_keep_their_proportion():
    class Dls:
        train = valid = [(torch.randn(4, 3, 40, 20), torch.zeros(4).long())]*2
    seen = SeenCB()
    learn = learner(GrowCB([10, 30]), seen, dls=Dls())
    learn.model = pooled_resnet((4, 8), ni=3)
    learn.fit(3)
    assert [s[-2:] for s in dict.fromkeys(tuple(s) for s in seen.shapes if s[0] == "training")] == [
        (10, 5), (30, 15), (40, 20)]


@pytest.mark.parametrize("sizes, epochs, said", [
    ([14, 20], 2, "2 sizes leave no epoch of 2"), (14, 1, "1 sizes leave no epoch of 1"),
    ([29], 2, "size 29 is above")])
def test_sizes_that_do_not_fit_are_refused(sizes, epochs, said):
    with pytest.raises(ValueError, match=said):
        learner(GrowCB(sizes)).fit(epochs)


@pytest.mark.parametrize("sizes", [0, [14, -2], [14.5], ["14"], None])
def test_a_size_is_a_whole_number(sizes):
    if sizes is None:
        assert GrowCB(sizes).sizes == []                    # nothing grows
    else:
        with pytest.raises(ValueError, match="a size must be a whole number"):
            GrowCB(sizes)


def test_squeeze_and_excitation_is_at_first_the_identity_and_then_depends_on_the_image():
    se = SqueezeExcite(3)
    x = torch.randn(5, 3, 4, 4)
    assert se(x).equal(x) and se.gate[0].out_features == 1
    nn.init.normal_(se.gate[2].weight, std=5.)
    nn.init.constant_(se.gate[0].bias, 1.)
    factors = (se(x)/x).mean((2, 3))
    assert torch.allclose(factors[..., None, None]*x, se(x), atol=1e-5) and factors.std(0).max() > 0
    assert factors.min() >= 0 and factors.max() <= 2
