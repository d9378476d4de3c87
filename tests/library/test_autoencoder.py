"""Chapter 17: what builders use is right for other shapes, survives saving, and says what it can't do."""
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import groundup as gu

SHAPE = (2, 6, 5)


@pytest.fixture
def images():
    "Images whose 60 numbers are mixtures of 6, and some noise."
    g = torch.Generator().manual_seed(0)
    mixed = torch.randn(400, 6, generator=g) @ torch.randn(6, 60, generator=g)
    return (mixed + 0.1*torch.randn(400, 60, generator=g)).view(-1, *SHAPE)


def squared(a, b):
    return (a - b).pow(2).mean().item()


@pytest.mark.parametrize("k", [1, 7, 60])
def test_components_are_those_of_a_singular_value_decomposition(images, k):
    mean, comps, stds = gu.principal(images, k)
    u, s, vt = torch.linalg.svd(images.flatten(1) - mean, full_matrices=False)
    assert comps.shape == (k, 60) and stds.shape == (k,)
    assert torch.allclose(stds, s[:k]/20, rtol=1e-2, atol=1e-3)
    assert torch.allclose(comps @ comps.T, torch.eye(k), atol=1e-5)
    z = (images.flatten(1) - mean) @ comps.T
    best = (u[:, :k]*s[:k]) @ vt[:k]
    assert torch.allclose(z @ comps, best, atol=1e-2)


@pytest.mark.parametrize("k", [0, 61, 2.5, True])
def test_only_as_many_components_as_there_are_numbers(images, k):
    with pytest.raises(ValueError, match="the number of components must be a whole number, from 1 to 60"):
        gu.principal(images, k)


def test_begins_where_the_components_are(images):
    mean, comps, _ = gu.principal(images, 4)
    net = gu.Autoencoder(4, SHAPE, (16, 8)).start_from(images)
    flat = images.flatten(1) - mean
    linear = (flat @ comps.T @ comps + mean).view_as(images)
    for mode in (True, False):                              # what the nets add is zero, whatever their norms do
        assert torch.allclose(net.train(mode)(images), linear, atol=1e-4)
    assert torch.allclose(net.encode(images).std(0), torch.ones(4), atol=0.02)
    assert torch.equal(net.decode(net.eval().encode(images)), net(images))


def test_training_goes_below_the_components(images):
    gu.set_seed(0)
    bent = images.abs()                                     # no linear code can follow that
    net = gu.Autoencoder(6, SHAPE, (64, 32)).start_from(bent)
    before, fixed = squared(net(bent), bent), net.down.clone()
    dls = SimpleNamespace(train=gu.TensorLoader(bent, torch.zeros(400), 50, True), valid=None)
    learn = gu.TrainLearner(net, dls, F.mse_loss, 1e-2, gu.BatchTransformCB(gu.Rebuild()), torch.optim.Adam)
    learn.fit(10, valid=False)
    assert squared(net.eval()(bent), bent) < 0.7*before
    assert torch.equal(net.down, fixed)


def test_a_saved_model_has_its_components_with_it(images, tmp_path):
    assert gu.Autoencoder                                   # its chapter enters it in MODELS
    config = {"builder": "autoencoder", "kwargs": {"code": 3, "shape": SHAPE, "hidden": (8,)}}
    net = gu.build(config).start_from(images).eval()
    gu.save_model(net, tmp_path/"net.pt", config)
    again = gu.load_model(tmp_path/"net.pt")
    assert torch.equal(again.eval()(images), net(images))


@pytest.mark.parametrize("code", [0, 61, -1, 1.5, None])
def test_a_code_is_at_most_as_large_as_the_image(code):
    with pytest.raises(ValueError, match="the code of an image of 60 numbers must be a whole number, from 1 to 60"):
        gu.Autoencoder(code, SHAPE)


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 6, 5), (60,), (2, 2, 6, 5)])
def test_other_images_are_refused(images, shape):
    net = gu.Autoencoder(3, SHAPE, (8,))
    for f in (net, net.encode, net.start_from):
        with pytest.raises(ValueError, match=r"made for images of shape \(2, 6, 5\), got"):
            f(torch.zeros(4, *shape))
    with pytest.raises(ValueError, match=r"made for codes of shape \(3,\), got \(4,\)"):
        net.decode(torch.zeros(2, 4))


def test_rebuild_spoils_only_the_input(images):
    for batch in ((images,), (images, torch.zeros(400)), [images, None]):
        x, y = gu.Rebuild(torch.neg)(batch)
        assert torch.equal(x, -images) and y is images
        x, y = gu.Rebuild()(batch)
        assert x is images and y is images


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.1, float("nan"), "half"])
def test_a_share_is_between_nothing_and_everything(share):
    with pytest.raises(ValueError, match="the share to hide must be a number above 0 and below 1"):
        gu.Mask(share)


@pytest.mark.parametrize("per_item", [True, False])
def test_a_mask_hides_one_side(per_item):
    x = torch.rand(60, 3, 8, 12) + 1
    x[0, :, 0, 0] = 0
    y = gu.Mask(0.25, per_item, seed=1)(x)
    sides = [torch.zeros(8, 12, dtype=torch.bool) for _ in range(4)]
    sides[0][:2], sides[1][-2:], sides[2][:, :3], sides[3][:, -3:] = True, True, True, True
    found = {next(k for k, s in enumerate(sides) if torch.equal((b == 0).all(0), s)) for b in y[1:]}
    assert found == {0, 1, 2, 3} if per_item else len(found) == 1
    hidden = (y[1:] == 0).all(1, keepdim=True)
    assert torch.equal(torch.where(hidden, x[1:], y[1:]), x[1:])


@pytest.mark.parametrize("make", [partial(gu.Mask, 0.5), partial(gu.Noise, 0.3)])
def test_spoilers_repeat_with_a_seed_and_rest_in_eval(make):
    x = torch.rand(5, 1, 6, 6)
    a, b = make(seed=4), make(seed=4)
    first = a(x)
    assert torch.equal(first, b(x)) and not torch.equal(first, a(x))
    state = b.state_dict()
    c = make(seed=4)
    c.load_state_dict(state)
    assert torch.equal(c(x), b(x))
    assert a.eval()(x) is x


def test_noise_has_the_size_it_says():
    x = torch.zeros(50, 1, 40, 40)
    assert abs(gu.Noise(0.3, seed=0)(x).std() - 0.3) < 0.01
    for std in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="std must be a number above 0"):
            gu.Noise(std)


def test_psnr():
    x = torch.rand(3, 1, 4, 4)
    for d, db in ((0.1, 20.), (0.01, 40.)):
        assert torch.allclose(gu.psnr(x + d, x), torch.full((3,), db), atol=1e-2)
    assert torch.allclose(gu.psnr(255*x, 255*x + 25.5, peak=255), torch.full((3,), 20.), atol=1e-2)
    assert gu.psnr(x, x).isinf().all()
    with pytest.raises(ValueError, match="shapes differ"):
        gu.psnr(x, x[:2])
