"Chapter 11 in odd cases: what LSUV can set, what it leaves as it was, and memory in a plain Python session."
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from exp.nb06 import GeneralRelu
from exp.nb10 import set_seed
from exp.nb11 import BatchTransformCB, conv, lsuv_init

ROOT = Path(__file__).resolve().parents[2]
act = partial(GeneralRelu, leak=0.1, sub=0.4)


@pytest.fixture
def xb():
    set_seed(42)
    return torch.randn(64, 1, 12, 12)


def everything(model):
    return {k: v.clone() for k, v in (*model.named_parameters(), *model.named_buffers())}


class Residual(nn.Module):
    "The activation is behind a sum, one layer is used twice, one buffer is not saved, and one is made anew each time."

    def __init__(self):
        super().__init__()
        self.first, self.twice, self.act = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), act()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("unsaved", torch.zeros(()), persistent=False)

    def forward(self, x, scale=1.):
        self.count = self.count + 1
        self.unsaved += 1
        x = self.act(self.first(x*scale))
        x = self.act(x + self.twice(x))
        return self.act(self.twice(x))


def test_lsuv_follows_the_calls_however_the_model_is_built(xb):
    model = Residual()
    report = lsuv_init(model, [xb, torch.tensor(2.)])
    assert [o.name for o in report] == ["first", "twice"] and report.reached
    assert all(abs(o.mean) < 1e-2 and abs(o.std - 1) < 1e-2 for o in report)
    assert model.count == model.unsaved == 0


def test_lsuv_leaves_modes_buffers_and_generators(xb):
    model = nn.Sequential(conv(1, 4, act=act), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.BatchNorm2d(4),
                          conv(4, 4, act=act))
    model[2].eval()
    modes, buffers = [m.training for m in model.modules()], {k: b.clone() for k, b in model.named_buffers()}
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    lsuv_init(model, xb)
    assert torch.equal(torch.rand(3), want) and [m.training for m in model.modules()] == modes
    assert all(torch.equal(b, buffers[k]) for k, b in model.named_buffers())


def test_lsuv_seeds_nothing(xb, monkeypatch):
    "Not even what another device would begin with; and dropout drops the same in every pass."
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("seeded"))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded"))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.3), act(), nn.Conv2d(4, 4, 3), act())
    assert lsuv_init(model, xb).reached


def test_lsuv_says_in_a_sentence_what_it_cannot_do(xb):
    with pytest.raises(ValueError, match="(?s)uninitialized parameter.*dummy batch"):
        lsuv_init(nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU()), xb)
    with pytest.raises(ValueError, match="nothing it can set"):
        lsuv_init(nn.Sequential(nn.ReLU(), nn.Flatten()), xb)


@pytest.mark.parametrize("fault", ["dead", "constant", "nan", "error"])
def test_lsuv_that_fails_changes_nothing(fault, xb):
    model = nn.Sequential(conv(1, 4, act=act), nn.BatchNorm2d(4), conv(4, 4, act=act), conv(4, 4, act=act))
    with torch.no_grad():
        if fault != "error":
            model[3][0].weight.fill_(float("nan") if fault == "nan" else 0.)
            model[3][0].bias.copy_(torch.arange(4.)*(fault == "constant"))
    if fault == "error":
        passes = []
        model[3][1].register_forward_hook(lambda *_: passes.append(1) if len(passes) < 20 else 1/0)
    before = everything(model)
    with pytest.raises(ZeroDivisionError if fault == "error" else ValueError):
        lsuv_init(model, xb)
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in everything(model).items())


def test_a_transform_is_saved_if_it_has_a_state():
    class Noise(nn.Module):
        def __init__(self):
            super().__init__()
            self.rng = torch.Generator().manual_seed(3)

        def forward(self, batch):
            return batch[0] + torch.rand(1, generator=self.rng), batch[1]

        def get_extra_state(self):
            return self.rng.get_state()

        def set_extra_state(self, state):
            self.rng.set_state(state)

    cb, other = BatchTransformCB(Noise()), BatchTransformCB(Noise())
    cb.tfm((torch.zeros(1), None))
    other.load_state_dict(cb.state_dict())
    assert torch.equal(cb.tfm((torch.zeros(1), None))[0], other.tfm((torch.zeros(1), None))[0])
    plain = BatchTransformCB(len)
    plain.load_state_dict(plain.state_dict())
    assert plain.tfm is len


def test_clean_mem_in_a_plain_session():
    session = """
import gc, weakref, torch
from exp.nb11 import clean_mem
kept = []
def fails():
    x = torch.empty(1000); kept.append(weakref.ref(x)); raise RuntimeError

fails()
before = kept[0]() is not None
clean_mem()
print(before, kept[0]() is None)
"""
    done = subprocess.run([sys.executable, "-i", "-q"], input=session, capture_output=True, text=True, timeout=120,
                          cwd=ROOT)
    assert done.stdout.split() == ["True", "True"], done.stdout + done.stderr
