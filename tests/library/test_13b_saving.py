"""What chapter 13b's notebook can't try in passing: files in bad states, and files that misbehave on purpose."""
import errno
import io
import os

import pytest
import torch
from torch import nn

from exp.nb00c import Images
from exp.nb08 import DataLoaders
from exp.nb09b import TrainLearner
from exp.nb11 import BatchTransformCB
from exp.nb12c import fast_dls
from exp.nb13b import MODELS, build, builder, input_facts, load_model, read_model, save_model
from exp.nb13c import pooled_resnet
from exp.nb14a import classify

CONFIG = {"builder": "pooled_resnet", "kwargs": {"nfs": [4, 8]}}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return pooled_resnet((4, 8)).eval()


@pytest.fixture
def saved(tmp_path, model):
    return save_model(model, tmp_path/"m.pt", CONFIG)


def test_comes_back_as_it_was(saved, model):
    x = torch.randn(3, 1, 28, 28)
    again = load_model(saved)
    assert again(x).equal(model(x)) and again.config == CONFIG
    state = torch.get_rng_state()
    save_model(model, saved, CONFIG)
    load_model(saved, model)
    assert torch.get_rng_state().equal(state)


@pytest.mark.skipif(os.name == "nt", reason="Windows knows only read-only")
def test_permissions_of_a_file_stay_as_they_are(saved, model):
    saved.chmod(0o600)
    save_model(model, saved, CONFIG)
    assert saved.stat().st_mode & 0o777 == 0o600


def test_saving_draws_no_random_numbers(tmp_path, model):
    state = torch.get_rng_state()
    save_model(model, tmp_path/"m.pt", CONFIG)
    assert torch.get_rng_state().equal(state)


def test_a_learner_and_channels_last_weights_can_be_saved(tmp_path, model):
    model.to(memory_format=torch.channels_last)
    path = save_model(TrainLearner(model, None, None), tmp_path/"m.pt", CONFIG)
    assert load_model(path)[0][0].weight.is_contiguous()


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.7, 0.99, 0.9999])
def test_a_truncated_file_is_an_error_that_names_it(saved, share):
    data = saved.read_bytes()
    saved.write_bytes(data[:int(share*len(data))])
    with pytest.raises(ValueError, match=r"m\.pt is no whole saved model"):
        load_model(saved)


def test_a_damaged_weight_is_noticed(saved):
    data = bytearray(saved.read_bytes())
    state = read_model(saved)[1]
    i = data.find(state["0.0.weight"].numpy().tobytes())
    assert i > 0
    data[i + 40] ^= 0x10
    saved.write_bytes(data)
    with pytest.raises(ValueError, match="is no whole saved model"):
        load_model(saved)


class Bomb:
    def __reduce__(self): return os.mkdir, ("bomb",)


def test_nothing_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": "groundup-model-1", "config": Bomb(), "weights": {}}, tmp_path/"m.pt")
    with pytest.raises(ValueError, match="is no whole saved model"):
        load_model(tmp_path/"m.pt")
    assert not (tmp_path/"bomb").exists()


def test_other_files_of_torch_are_refused(tmp_path, model):
    torch.save(model.state_dict(), tmp_path/"m.pt")
    with pytest.raises(ValueError, match="is no whole saved model .*not made by save_model"):
        load_model(tmp_path/"m.pt")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path/"none.pt")


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_on_a_full_disk_the_old_file_stays(saved, model, monkeypatch, name):
    def full(*args): raise OSError(errno.ENOSPC, "No space left on device")
    before = saved.read_bytes()
    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError, match="No space left on device") as e:
        save_model(model, saved, CONFIG)
    assert e.value.errno == errno.ENOSPC
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["m.pt"]


def test_an_interrupt_while_saving_leaves_the_old_file(saved, model, monkeypatch):
    def interrupted(*args): raise KeyboardInterrupt
    before = saved.read_bytes()
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_model(model, saved, CONFIG)
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["m.pt"]


def test_a_link_is_followed(tmp_path, saved, model):
    link = tmp_path/"link.pt"
    link.symlink_to(saved)
    save_model(model, link, CONFIG | {"note": 1})
    assert link.is_symlink() and load_model(saved).config["note"] == 1


def test_another_architecture_is_refused_and_nothing_changed(saved):
    other = pooled_resnet((4, 16))
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"1\.convs\.0\.0\.weight is \(8, 4, 3, 3\), not \(16, 4, 3, 3\)"):
        load_model(saved, other)
    assert all(v.equal(before[k]) for k, v in other.state_dict().items())


@pytest.mark.parametrize("config", [{"builder": "no"}, {}, None, {"builder": "pooled_resnet", "kwargs": {"x": 1}},
                                    CONFIG | {"loss": float("nan")}, CONFIG | {"act": nn.ReLU},
                                    {"builder": "get_resnet"}])
def test_a_configuration_that_can_not_be_built_is_not_saved(tmp_path, model, config):
    del model.config                                       # nobody knows how it was built
    with pytest.raises(ValueError):
        save_model(model, tmp_path/"m.pt", config)
    assert not os.listdir(tmp_path)


def test_build_names_what_is_known():
    with pytest.raises(ValueError, match="only get_resnet, pooled_resnet"):
        build({"builder": "exp.nb13b.load_model"})


def test_a_buffer_of_another_program_is_no_model(tmp_path):
    buf = io.BytesIO()
    torch.save([1, 2, 3], buf)
    (tmp_path/"m.pt").write_bytes(buf.getvalue())
    with pytest.raises(ValueError, match="is no whole saved model .*not made by save_model"):
        load_model(tmp_path/"m.pt")


@pytest.fixture
def mine(monkeypatch):
    "Two builders of a program: a class, and a function that has the class inside."
    monkeypatch.setattr("exp.nb13b.MODELS", dict(MODELS))

    @builder
    class Twice(nn.Module):
        def __init__(self, n: int, *, bias: bool = True):
            super().__init__()
            self.layer = nn.Linear(n, n, bias=bias)

        def forward(self, x): return self.layer(self.layer(x))

    @builder
    def stack(*, depth: int, **rest): return nn.Sequential(*(Twice(2, **rest) for _ in range(depth)))
    return Twice, stack


def test_models_of_a_builder_know_how_they_were_built(mine, tmp_path):
    Twice, stack = mine
    assert Twice(3, bias=False).config == {"builder": "Twice", "kwargs": {"n": 3, "bias": False}}
    assert isinstance(Twice(3), Twice) and not hasattr(type("Sub", (Twice,), {})(3), "config")
    for net, x in (Twice(3), torch.ones(1, 3)), (stack(depth=2, bias=False), torch.ones(1, 2)):
        assert load_model(save_model(net, tmp_path/"m.pt"))(x).equal(net(x))
    other = tmp_path/"other.py"
    other.write_text("from exp.nb13b import builder\n@builder\ndef stack(): pass\n")
    with pytest.raises(ValueError, match="has entered a builder 'stack' already"):
        import runpy
        runpy.run_path(str(other), run_name="other")


def test_a_config_that_is_something_else_is_left_alone(tmp_path):
    net = pooled_resnet((4, 8))
    net.config = object()                                  # as models of other libraries have it
    for o in (net, TrainLearner(net, None, None)):
        assert load_model(save_model(o, tmp_path/"m.pt", CONFIG)).config == CONFIG


def test_one_who_says_another_builder_says_its_arguments_too(tmp_path, model):
    with pytest.raises(ValueError, match="builds another model"):
        save_model(model, tmp_path/"m.pt", {"builder": "pooled_resnet"})
    save_model(model, tmp_path/"m.pt", {"kwargs": {"nfs": (4, 8)}})


def test_a_learner_says_what_it_knows_of_its_inputs_and_no_more():
    x = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    images = Images(x, torch.arange(4) % 2, x, torch.arange(4) % 2, names=("a", "b"))
    learn = TrainLearner(pooled_resnet((4, 8), n_out=2), fast_dls(images, 2, "cpu"), nn.CrossEntropyLoss())
    assert "shape" not in input_facts(learn)
    learn.fit(1)
    facts = input_facts(learn)
    assert facts["shape"] == [1, 8, 8] and facts["names"] == ["a", "b"]
    assert facts["normalize"] == [pytest.approx([0.5]), pytest.approx([0.29], abs=0.01)]
    learn.cbs.append(BatchTransformCB(lambda batch: batch, on_val=False))
    assert "normalize" in input_facts(learn)
    learn.cbs.append(BatchTransformCB(lambda batch: batch))
    assert "normalize" not in input_facts(learn)           # it may be what normalises, and nobody knows how


def test_what_a_file_said_of_other_pictures_is_not_handed_on(tmp_path):
    "A model that goes on learning from pixels prepared in another way, nobody knows how."
    net = pooled_resnet((4, 8), n_out=2)
    path = save_model(net, tmp_path/"m.pt", {"shape": [1, 8, 8], "normalize": [[0.5], [0.2]], "note": "first"})
    x, y = torch.rand(8, 1, 8, 8), torch.arange(8) % 2
    learn = TrainLearner(load_model(path), DataLoaders([(x, y)], [(x, y)]), nn.CrossEntropyLoss())
    learn.fit(1)
    config = load_model(save_model(learn, path)).config
    assert config == {"builder": "pooled_resnet", "kwargs": {"nfs": [4, 8], "n_out": 2}, "shape": [1, 8, 8]}
    with pytest.raises(ValueError, match="does not say the normalize"):
        classify(learn, x[0].byte())
