"""Chapter 13a where its notebook need not go: any structure of inputs, and nothing that a summary leaves behind."""
from math import prod

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from exp.nb08 import DataLoaders
from exp.nb09 import Callback
from exp.nb09b import TrainLearner
from exp.nb12c import TensorLoader
from exp.nb13a import flops


def learner(model, batch=None, **kwargs):
    batch = batch or (torch.randn(4, 6), torch.arange(4) % 3)
    return TrainLearner(model, DataLoaders([batch]), F.cross_entropy, **kwargs)


class Odd(nn.Module):
    "Takes a dict, calls a layer that fails on the way, and answers with a list."
    def __init__(self):
        super().__init__()
        self.fails, self.lin = nn.Linear(5, 5), nn.Linear(6, 3)

    def forward(self, d):
        try:
            self.fails(d["x"])
        except RuntimeError:
            pass
        return [self.lin(d["x"]), {"scale": d["s"]}]


def test_inputs_of_any_structure():
    batch = {"x": torch.randn(4, 6), "s": torch.ones(())}, torch.arange(4) % 3
    learn = learner(Odd(), batch)
    learn.loss_func = lambda preds, y: F.cross_entropy(preds[0], y)
    table = learn.summary(depth=None)
    rows = {r["module"]: r for r in table.rows}
    assert rows["lin Linear"]["multiply-adds"] == 18 and table.total["output"] == "(4, 3), ()"
    assert table.total["parameters"] == 6*3 + 3 + 5*5 + 5


def test_compiled_model():
    plain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    compiled = learner(torch.compile(plain, backend="eager"))
    assert compiled.summary().rows == learner(plain).summary().rows
    assert type(compiled.model).__name__ == "OptimizedModule"


def test_nothing_is_left_behind():
    "Loaders, gradients, modes, the optimiser and callbacks are as before; those that are not for trials see nothing."
    class Counts(Callback):
        on_trial, seen = False, 0

        def before_batch(self, learn):
            self.seen += 1
    g = torch.Generator().manual_seed(1)
    dls = DataLoaders(TensorLoader(torch.randn(12, 6), torch.arange(12) % 3, 4, True, generator=g))
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    learn = TrainLearner(model, dls, F.cross_entropy, cbs=Counts())
    learn.fit(valid=False)
    model[1].eval()
    model[0].weight.grad = torch.ones(5, 6)
    opt, gen, rng = learn.opt, g.get_state(), torch.get_rng_state()
    norm, seen = {k: v.clone() for k, v in model.state_dict().items()}, learn.cbs[0].seen
    learn.summary()
    assert learn.opt is opt and g.get_state().equal(gen) and torch.get_rng_state().equal(rng)
    assert [m.training for m in model] == [True, False, True] and model[0].weight.grad.sum() == 30
    assert all(v.equal(norm[k]) for k, v in model.state_dict().items()) and learn.cbs[0].seen == seen == 3
    assert dls.train.start == 0 and len(list(dls.train)) == 3


def test_shown_in_html():
    "What a class is called can't become part of the page."
    table = learner(type("<b>Net", (nn.Linear,), {})(6, 3)).summary()
    assert "&lt;b&gt;Net" in table._repr_html_() and "<b>" not in table._repr_html_()
    assert repr(table).splitlines()[0].split() == ["module", "input", "output", "parameters", "multiply-adds"]


@pytest.mark.parametrize("layer, grid", [(nn.Conv2d(4, 8, (3, 1), (2, 1)), (5, 7)), (nn.Conv3d(2, 4, 3), (2, 3, 4)),
                                         (nn.ConvTranspose1d(3, 2, 4, 3, 1, 1), (15,)), (nn.Linear(3, 4), (6,))])
def test_flops_by_counting(layer, grid):
    "Each weight is used at each place of the output, of a transposed convolution at each of the input."
    if isinstance(layer, nn.ConvTranspose1d):
        assert layer(torch.zeros(1, 3, 5)).shape[2:] == grid
        grid_used = (5,)
    else:
        grid_used = grid
    assert flops(layer, grid) == layer.weight.numel()*prod(grid_used)
