"""Legal inputs at the edges of what chapters show, each with its right value: epochs left early, odd loaders."""
import csv
import math
import pickle
import signal
import sys
import time
from collections import OrderedDict, UserDict
from collections.abc import MutableMapping
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from benchmarks import records
from exp import nb00c, nb14, nb18
from exp.nb00 import equal
from exp.nb00a import Table, Tidy, log_runs, machine_name, map_tensors, set_state
from exp.nb00c import Images, toy_images
from exp.nb01 import time_it
from exp.nb05 import combine_scheds, sched_lin
from exp.nb08 import DataLoaders, get_grid, inplace, tensor_dls
from exp.nb09 import Accuracy, Callback, CancelEpochException, MetricsCB, SingleBatchCB
from exp.nb09a import ProgressCB, _surroundings, trial
from exp.nb09b import TrainLearner, nan_or_inf
from exp.nb12 import SGD
from exp.nb12b import BatchSchedCB, EpochSchedCB
from exp.nb12c import MixedPrecisionCB, fast_dls
from exp.nb13a import _own_flops
from exp.nb13b import CheckpointCB, save_model
from exp.nb14a import _scores, classify, pixels
from exp.nb14b import AccumulateCB, CSVLogCB, EarlyStopCB, GoOnCB, with_rates
from exp.nb15 import EMACB, held_out, recipe, record_learner, triangle
from exp.nb16 import Sharded, Workers, join_norms
from exp.nb17 import principal
from exp.nb17a import _logs

IMAGES = Images(*toy_images("fashion_mnist", 300, 100), "fashion_mnist", "here")


def learner(*cbs, opt=torch.optim.SGD, lr=0.01, model=None, dls=None) -> TrainLearner:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    return TrainLearner(model, dls or fast_dls(IMAGES, 100, "cpu"), F.cross_entropy, lr,
                        [MetricsCB(Accuracy(), quiet=True), *cbs], opt)


class Leave(Callback):
    "Leaves the epochs in `epochs` at the event `event`, before callbacks of a later order hear of it."
    def __init__(self, event: str, *epochs: int):
        def leave(learn):
            if learn.epoch in epochs:
                raise CancelEpochException
        setattr(self, event, leave)


# ---- epochs that are left early

def test_a_validation_that_is_left_out_leaves_the_numbers_of_training_where_they_belong():
    learn = learner(Leave("before_validate", 0, 2))
    learn.fit(3)
    rows = learn.metrics.history
    assert [("train_loss" in r, "valid_loss" in r) for r in rows] == [(True, False), (True, True), (True, False)]
    assert rows[0]["train_loss"] > rows[1]["train_loss"] > rows[2]["train_loss"]


@pytest.mark.parametrize("left", [0, 1])
def test_an_epoch_that_is_left_at_its_beginning_has_a_row_of_its_own(left):
    learn = learner(Leave("before_epoch", left))
    learn.fit(2)
    assert [r["epoch"] for r in learn.metrics.history] == [0, 1]
    assert [set(r) == {"epoch", "time"} for r in learn.metrics.history] == [i == left for i in range(2)]
    learn.fit(1)                                            # what was left before does not count here
    assert [r["epoch"] for r in learn.metrics.history] == [0]


def test_a_schedule_of_epochs_steps_for_those_that_trained():
    cb = EpochSchedCB(partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.1))
    learn = learner(Leave("before_epoch", 1, 2), cb, lr=1.)
    learn.fit(3)
    assert math.isclose(learn.opt.param_groups[0]["lr"], 0.1)


def test_a_log_has_columns_for_what_any_epoch_had(tmp_path):
    learner(CSVLogCB(tmp_path/"log.csv"), Leave("before_validate", 1)).fit(2)
    rows = list(csv.DictReader((tmp_path/"log.csv").read_text("utf-8").splitlines()))
    assert [r["valid_loss"] == "nan" for r in rows] == [False, True]
    assert math.isnan(_logs([tmp_path/"log.csv"])["log"][1]["valid_loss"])


def test_a_stop_is_seen_by_callbacks_that_come_later(tmp_path):
    learn = learner(EarlyStopCB("valid_loss", patience=1), CSVLogCB(tmp_path/"log.csv"), lr=100.)
    learn.fit(20)
    assert len(learn.metrics.history) == len((tmp_path/"log.csv").read_text("utf-8").splitlines()) - 1 < 20


# ---- rates and steps

def test_a_part_may_have_a_rate_of_0_but_a_fit_may_not():
    model = nn.Sequential(nn.Flatten(), body := nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    learn = learner(opt=with_rates(torch.optim.SGD, {body: 0.}), model=model)
    before = body.weight.clone()
    learn.fit(1)
    assert body.weight.equal(before)
    with pytest.raises(ValueError, match="learning rate"):
        learn.fit(1, lr=0.)


def test_a_rate_for_an_optimiser_that_is_there_already_is_refused_not_ignored():
    learn = learner()
    learn.opt, learn.opt_func = torch.optim.SGD(learn.model.parameters(), 0.1), None
    learn.fit(1)
    with pytest.raises(ValueError, match="lr needs an opt_func"):
        learn.fit(1, lr=5.)


def test_what_is_left_of_a_group_of_batches_makes_a_step_of_its_mean():
    moved = []
    for bs, cbs in ((100, [AccumulateCB(4)]), (300, [])):
        learn = learner(*cbs, lr=0.1, dls=fast_dls(IMAGES, bs, "cpu"))
        before = learn.model[1].weight.detach().clone()
        learn.fit(1, valid=False)
        moved.append(learn.model[1].weight.detach() - before)
    assert torch.allclose(*moved, atol=1e-6)


def test_one_bad_batch_of_a_group_halves_the_scale_once():
    class Bad(Callback):
        def after_loss(self, learn):
            if learn.training and learn.iter == 1:
                learn.loss = learn.loss*math.inf
    mp = MixedPrecisionCB(torch.float16)
    learn = learner(mp, AccumulateCB(3), Bad())
    learn.cbs = [cb for cb in learn.cbs if cb is not learn.guard]
    learn.fit(1, valid=False)
    assert (mp.skipped, mp.scaler.get_scale()) == (1, 2.**15)


def test_a_group_that_was_refused_is_not_kept():
    opt = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(ValueError, match="no parameters"):
        opt.add_param_group({"params": []})
    assert len(opt.param_groups) == 1


def test_a_schedule_of_phases_forgives_rounding_below_0_too():
    assert combine_scheds([0.5, 0.5], [sched_lin(1., 2.), sched_lin(2., 3.)])(-5e-7) == pytest.approx(1.)


# ---- states

def test_attributes_keep_their_type_when_a_state_comes_back():
    class Counts(Callback):
        kept = "counts", "ema"
        def before_fit(self, learn):
            if not hasattr(self, "ema"):
                self.counts, self.ema = np.zeros(3, np.float32), torch.tensor(0.)
        def after_batch(self, learn):
            self.counts[0] += 1
            self.ema.lerp_(learn.loss.detach(), 0.1)
    learn = learner(cb := Counts())
    learn.fit(1)
    counts, ema = cb.counts.copy(), cb.ema.clone()
    with trial(learn):
        learn.fit(1, valid=False)
    assert cb.counts.dtype == np.float32 and (cb.counts == counts).all() and cb.ema.equal(ema)
    learn.fit(1)
    assert set_state(torch.zeros((), dtype=torch.int64), 3).dtype == torch.int64


def test_an_average_goes_on_from_numbers_and_leaves_what_is_no_tensor():
    class Extra(nn.Linear):
        def __init__(self, *args):
            super().__init__(*args)
            self.register_buffer("count", torch.tensor(0.))
        def get_extra_state(self): return {"a": 1}
        def set_extra_state(self, state): pass
    learn = learner(ema := EMACB(0.9), model=nn.Sequential(nn.Flatten(), Extra(784, 10)))
    learn.fit(1)
    ema.avg["1.count"] = 0.                                 # as a checkpoint has it
    ema.after_step(learn)
    assert isinstance(ema.avg["1.count"], torch.Tensor)


def test_runs_are_added_to_a_log_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    row = {"model": "a", "seed": 0, "epoch": 1, "accuracy": 0.5, "loss": 1., "seconds": 1., "machine": "m"}
    for model in "ab":
        path = log_runs("~/runs.csv", [row | {"model": model}])
    assert [line[0] for line in path.read_text("utf-8").splitlines()] == ["m", "a", "b"]


# ---- loaders and images

def test_pixels_of_another_type_are_refused_and_stay():
    x = IMAGES.x_train.float()/255
    images = Images(x, IMAGES.y_train, x[:9], IMAGES.y_train[:9], "fashion_mnist", "here")
    with pytest.raises(TypeError, match="uint8"):
        tensor_dls(images, 10)
    assert x.max() > 0.5


def double(batch):
    batch["x"] = 2*batch["x"]


def test_a_change_in_place_can_be_sent_to_another_process():
    assert pickle.loads(pickle.dumps(inplace(double)))({"x": 1}) == {"x": 2}


def test_an_error_in_a_loader_is_not_taken_for_its_absence():
    class Broken:
        train = [(torch.zeros(2, 784), torch.zeros(2, dtype=torch.int64))]
        @property
        def valid(self):
            raise ValueError("labels.csv is damaged")
    with pytest.raises(ValueError, match=r"labels\.csv is damaged"):
        learner(dls=Broken()).fit(1)


def test_a_grid_without_rows_is_refused():
    with pytest.raises(ValueError, match="rows and columns"):
        get_grid(4, nrows=0)


def test_parts_go_by_what_the_sampler_draws():
    ds = TensorDataset(torch.arange(105.), torch.arange(105))
    part = Sharded(DataLoader(ds, 10, sampler=WeightedRandomSampler(torch.ones(105), 200)), 0, 2)
    assert [part.joint(i) for i in range(20)] == [10]*20
    part = Sharded(DataLoader(ds, 10, sampler=SubsetRandomSampler(range(51))), 0, 2, least=2)
    assert part.left_out == 1


def test_a_worker_may_get_nothing_of_a_last_batch():
    ds = TensorDataset(torch.arange(101.), torch.arange(101))
    parts = [sorted(int(v) for _, y in Sharded(DataLoader(ds, 20), rank, 2) for v in y) for rank in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(101))


def test_what_comes_from_the_hub_and_is_no_image_set_is_a_note(tmp_path, monkeypatch):
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path))
    for k in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(k, raising=False)
    monkeypatch.setattr(nb00c, "_watched", lambda f, place: f())
    monkeypatch.setattr(nb00c, "_download", lambda name, work: [
        (work/f"{split}.parquet").write_text("<html>please log in</html>") for split in ("train", "test")] and "")
    said = []
    assert nb00c._from_hub("mnist", said.append) is None
    assert "what came is no image set" in said[0]


def test_names_of_classes_stay_when_images_are_held_out():
    images = Images(*toy_images("fashion_mnist", 300, 100), "own", "here", list("abcdefghij"))
    assert list(held_out(images, 20).names) == list("abcdefghij")


# ---- looking at a model

@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_the_guard_looks_at_sparse_gradients():
    bad = torch.sparse_coo_tensor([[0]], [math.nan], (3,))
    assert (nan_or_inf([bad]), nan_or_inf([torch.sparse_coo_tensor([[0]], [1.], (3,))])) == ("NaN", "")


def test_a_learner_of_a_recipe_classifies():
    learn = record_learner(recipe("half", epochs=1, bs=100, net={"nfs": [4, 8, 16]}), IMAGES)
    learn.fit(1, lr=1e-9)
    assert max(g["lr"] for g in learn.opt.param_groups) < 1e-8         # this fit's, a share of the recipe's
    assert len(classify(learn, IMAGES.x_valid[:3, None])) == 3


def test_modules_keep_their_modes_when_a_model_classifies():
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10), norm := nn.BatchNorm1d(10))
    norm.eval()
    _scores(model, IMAGES.x_valid[:2, None].float())
    assert (model.training, norm.training) == (True, False)


def test_what_is_transparent_is_white_for_an_image_too(tmp_path):
    im = Image.new("P", (28, 28), 0)
    im.putpalette([0, 0, 0, 255, 255, 255])
    im.save(tmp_path/"clear.png", transparency=0)
    by_path = pixels(tmp_path/"clear.png", (1, 28, 28))
    with Image.open(tmp_path/"clear.png") as opened:
        assert pixels(opened, (1, 28, 28)).equal(by_path) and by_path.min() == 255


def test_a_scale_of_its_own_does_not_hide_what_is_below():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.lin = nn.Parameter(torch.ones(10)), nn.Linear(784, 10)
    assert _own_flops(Scaled(), torch.zeros(2, 10), 2) == 0


def test_principal_components_of_data_far_from_zero():
    stds = torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1])
    x = 1000 + torch.randn(5000, 5, generator=torch.Generator().manual_seed(0))*stds
    assert torch.allclose(principal(x, 5)[2], stds, atol=0.02)


# ---- shown and timed

def test_the_users_own_log_stays():
    learn = learner(ProgressCB(mode="plain"))
    rows: list = []
    learn.cbs[0].log, learn.cbs[0].quiet = rows.append, False
    learn.fit(1)
    learn.fit(1)
    assert len(rows) == 2


def test_without_a_terminal_there_are_lines(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert _surroundings() in ("plain", "notebook")


def test_rows_of_different_length_are_a_table():
    assert repr(Table([("a", "b"), ("1",)])).splitlines() == ["a  b", "1"]


def test_a_slow_first_call_does_not_decide_how_often_a_function_is_called():
    calls = []

    def f():
        if not calls:
            time.sleep(0.03)
        calls.append(1)
    time_it(f)
    assert len(calls) > 1000


def test_logs_in_folders_of_one_name_stay_apart(tmp_path):
    files = [tmp_path/k/"run"/"log.csv" for k in "ab"]
    for f in files:
        f.parent.mkdir(parents=True)
        f.write_text("epoch,train_loss\n0,1\n", encoding="utf-8")
    assert len(_logs(files)) == 2


# ---- commands

def test_a_file_of_a_builder_without_arguments_can_be_trained_on(tmp_path):
    learn = nb14.train(IMAGES, epochs=1, bs=50, model="pooled_resnet", quiet=True, fast=False)
    config = {"builder": "pooled_resnet", "kwargs": learn.config["kwargs"]}
    path = save_model(learn, tmp_path/"m.pt", config | {"dataset": "own"})
    more = nb14.train(IMAGES, epochs=1, bs=50, model=config | {"note": "x"}, weights=path, quiet=True, fast=False)
    assert more.metrics.history


def test_a_recipe_takes_as_many_images_as_there_are(monkeypatch):
    monkeypatch.setattr(nb18, "get_images", lambda name: IMAGES)
    for n in ("-5", "301"):
        assert nb18.groundup_train(["--recipe", "5", "--n_train", n]) == 2


def test_options_of_records_are_not_dropped(capsys):
    assert records.main(["--run", "half", "--variant", "without Muon", "--epochs", "8"]) == 2
    assert "--variant takes no --set" in capsys.readouterr().err
    with pytest.raises(ValueError, match="a recipe has no 'whiten'"):
        records.changed("half", "whiten")
    assert DataLoaders(None).has_valid is False


# ---- things that are empty, closed, or lack a part

def test_an_empty_tensor_is_no_number():
    assert not equal(torch.empty(0), 5) and not equal(np.array([]), 5.)
    assert equal(torch.tensor(5), 5) and equal(torch.empty(0), torch.empty(0)) and not equal(torch.tensor(5), "5")


class Wrapped(MutableMapping):
    "A mapping that keeps its items in another one, which `copy.copy` shares."
    def __init__(self, items): self.items_ = items
    def __getitem__(self, k): return self.items_[k]
    def __setitem__(self, k, v): self.items_[k] = v
    def __delitem__(self, k): del self.items_[k]
    def __iter__(self): return iter(self.items_)
    def __len__(self): return len(self.items_)


@pytest.mark.parametrize("kind, becomes", [(Wrapped, dict), (UserDict, UserDict), (OrderedDict, OrderedDict)])
def test_a_batch_that_is_a_mapping_of_any_kind_stays_as_it_is(kind, becomes):
    x = kind({"a": torch.ones(2)})
    y = map_tensors(lambda t: t + 1, x)
    assert type(y) is becomes and y["a"].tolist() == [2, 2] and x["a"].tolist() == [1, 1]


def test_a_machine_without_cuda_is_named_by_what_computes():
    assert machine_name("mps").endswith(", mps") and "thread" not in machine_name("mps")
    assert "thread" in machine_name("cpu")


def test_a_fit_with_another_number_of_steps_does_not_go_on_along_a_triangle(tmp_path):
    def fit(epochs):
        checkpoint = CheckpointCB(tmp_path/"c", resume=True)
        learner(BatchSchedCB(triangle), checkpoint).fit(epochs)
        return checkpoint.resumed
    fit(1)
    with pytest.raises(ValueError, match="of 3 steps there, BatchSchedCB 1 of 6 steps here"):
        fit(2)


def test_training_ended_by_a_callback_has_no_accuracy_and_ends():
    learn = nb14.train(IMAGES, 1, bs=100, cbs=SingleBatchCB(), quiet=True, model="get_resnet", fast=False)
    assert learn.metrics.history == [] and math.isnan(learn.config["accuracy"])


def test_workers_that_have_been_closed_say_so():
    workers = Workers.__new__(Workers)
    workers.n, workers.timeout, workers.procs, workers.pipes = 1, 1, [], []
    with pytest.raises(RuntimeError, match="have been ended"):
        workers.run(machine_name)


@pytest.mark.parametrize("lacks", [{"affine": False}, {"track_running_stats": False}, {"momentum": None}])
def test_a_norm_that_lacks_something_is_not_joined_and_none_is(lacks):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, **lacks))
    with pytest.raises(ValueError, match="can't be joined"):
        join_norms(model)
    assert [type(m) for m in model] == [nn.BatchNorm2d]*2


def test_a_saved_model_fits_the_configuration_it_was_built_from_with_tuples(tmp_path):
    config = {"builder": "get_resnet", "kwargs": {"nfs": (4, 8), "n_out": 10}}
    save_model(nb14.build(config), tmp_path/"m", config)
    nb14._start(config, "get_resnet", tmp_path/"m", 10, 1)
    with pytest.raises(ValueError, match="not {'builder'"):
        nb14._start({**config, "kwargs": {"nfs": (4, 4)}}, "get_resnet", tmp_path/"m", 10, 1)


def test_ctrl_c_does_not_disturb_the_undoing_of_a_stack_that_nobody_held():
    undone = []
    with pytest.raises(KeyboardInterrupt), Tidy() as tidy:
        tidy.callback(undone.append, "last")
        tidy.callback(lambda: (signal.raise_signal(signal.SIGINT), undone.append("first")))
        tidy.free()
    assert undone == ["first", "last"]


def test_an_average_begins_with_the_weights_that_a_fit_goes_on_from(tmp_path):
    first = learner(CheckpointCB(tmp_path/"c"))
    first.fit(2)
    for order in (lambda *cbs: cbs, lambda *cbs: cbs[::-1]):
        more = learner(*order(GoOnCB(tmp_path/"c", quiet=True), EMACB(1 - 1e-9)))
        more.fit(1)
        assert torch.allclose(more.model[1].weight, first.model[1].weight, atol=1e-6)
