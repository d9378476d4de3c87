"""Pictures in files, in other processes: what chapter 14a's notebook can't try in its own kernel."""
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, STRICT
from PIL import Image
from torch import nn

from exp.nb00c import Images, toy_images
from exp.nb08 import DataLoaders
from exp.nb09 import Accuracy, MetricsCB
from exp.nb09b import TrainLearner
from exp.nb12c import fast_dls
from exp.nb13b import load_model, save_model
from exp.nb13c import pooled_resnet
from exp.nb14a import classify, get_preds, groundup_predict, image_folder, image_table, pixels
from exp.nb18 import groundup_train

TRAIN = """
import sys, torch, torch.nn.functional as F
import groundup as gu
gu.set_seed(0)
images = gu.Images(*torch.load(sys.argv[1], weights_only=True), "fashion_mnist", "here")
learn = gu.TrainLearner(gu.pooled_resnet((8, 16)), gu.fast_dls(images, 32, "cpu"), F.cross_entropy, 0.1,
                        gu.MetricsCB(gu.Accuracy()))
learn.fit(3)
gu.save_model(learn, sys.argv[2], {"accuracy": learn.metrics.history[-1]["valid_accuracy"]})
"""


COMMAND = "-c", "import sys; from exp.nb14a import groundup_predict; sys.exit(groundup_predict())"


def run(*args, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, args)], cwd=cwd, capture_output=True, encoding="utf-8",
                          timeout=300, env=os.environ | {"PYTHONPATH": str(ROOT), "GROUNDUP_DEVICE": "cpu"})


def test_a_model_of_one_process_classifies_files_in_another_with_the_accuracy_it_had(tmp_path):
    tensors = toy_images("fashion_mnist", 600, 100)
    torch.save(list(tensors), tmp_path/"images.pt")
    assert run("-c", TRAIN, "images.pt", "m.pt", cwd=tmp_path).returncode == 0
    (tmp_path/"files").mkdir()
    for i, x in enumerate(tensors[2]):
        Image.fromarray(x.numpy()).save(tmp_path/"files"/f"{i:03}.png")
    done = run(*COMMAND, "m.pt", "files", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(Path("files", f"{i:03}.png")) for i in range(100)]
    names = Images(*tensors, "fashion_mnist").names
    right = sum(name == names[y] for (_, name, _), y in zip(rows, tensors[3].tolist(), strict=True))
    assert right/100 == pytest.approx(load_model(tmp_path/"m.pt").config["accuracy"])
    assert right > 20                                      # it has learned something


@pytest.fixture
def model(tmp_path):
    "A model's file, of pictures 3×8×8 and classes a and b."
    config = {"shape": [3, 8, 8], "normalize": [[0.5]*3, [0.25]*3], "names": ["a", "b"]}
    return save_model(pooled_resnet((4, 8), n_out=2, ni=3), tmp_path/"m.pt", config)


def picture(path: Path, mode: str = "RGB", size: tuple = (20, 10)) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 4), dtype=np.uint8)
    Image.fromarray(noise, "RGBA").convert(mode).save(path)
    return path


@pytest.mark.parametrize("name, mode", [("a.png", "L"), ("a.png", "LA"), ("a.png", "P"), ("a.png", "RGBA"),
                                        ("a.png", "1"), ("a.png", "I;16"), ("a.jpg", "CMYK"), ("a.gif", "P"),
                                        ("a.bmp", "RGB"), ("a.tiff", "F"), ("a.webp", "RGBA")])
def test_pictures_of_all_kinds(tmp_path, model, name, mode, capsys):
    if mode == "I;16":
        Image.fromarray(np.full((5, 5), 40000, np.uint16)).save(tmp_path/name)
    elif mode == "F":
        Image.fromarray(np.full((5, 5), 200, np.float32)).save(tmp_path/name)
    else:
        picture(tmp_path/name, mode)
    assert groundup_predict([str(model), str(tmp_path/name)]) == 0
    assert capsys.readouterr().out.split("\t")[1] in "ab"


@pytest.mark.parametrize("spoil", ["text", "empty", "cut", "bomb"])
def test_what_is_no_picture_is_named_and_skipped(tmp_path, model, spoil, capsys):
    bad, good = picture(tmp_path/"bad.png", size=(200, 200)), picture(tmp_path/"good.png")
    if spoil == "bomb":                                    # 400 million pixels in a small file
        Image.new("1", (20_000, 20_000)).save(bad)
    else:
        bad.write_bytes({"text": b"no picture", "empty": b"", "cut": bad.read_bytes()[:5000]}[spoil])
    assert groundup_predict([str(model), str(bad), str(good)]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"{good}\t") and out.count("\n") == 1
    assert err.count("\n") == 1 and str(bad) in err and "skipped" in err
    assert groundup_predict([str(model), str(bad)]) == 1


def test_a_file_runs_nothing_and_a_builder_is_what_the_user_names(tmp_path):
    mine = "import sys\nsys.modules['ran'] = sys\nimport groundup as gu\nfrom torch import nn\n@gu.builder\n" \
           "def mine(n): return nn.Sequential(nn.Flatten(), nn.Linear(12, n))\n"
    (tmp_path/"mine.py").write_text(mine)
    facts = '{"shape": [3, 2, 2], "normalize": [[0.5], [0.5]]}'
    code = f"import groundup as gu\nfrom mine import mine\ngu.save_model(mine(n=2), 'm.pt', {facts})"
    made = run("-c", code, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    picture(tmp_path/"a.png")
    done = run(*COMMAND, "m.pt", "a.png", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no builder 'mine' is known" in done.stderr and done.stderr.count("\n") == 1
    done = run(*COMMAND, "--builders", "mine.py", "m.pt", "a.png", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("a.png\t"), done.stderr


def test_a_picture_is_turned_as_its_file_says(tmp_path):
    im, note = Image.new("RGB", (30, 10), "black"), Image.Exif()
    im.paste("white", (0, 0, 15, 10))                      # white on the left
    note[0x0112] = 6
    im.save(tmp_path/"a.png", exif=note)
    x = pixels(tmp_path/"a.png", (1, 30, 10))[0]
    assert x[0].eq(255).all() and x[-1].eq(0).all()


def learner(**kwargs) -> TrainLearner:
    torch.manual_seed(0)
    images = Images(*toy_images("fashion_mnist", 200, 60), "fashion_mnist", "here")
    learn = TrainLearner(nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(784, 10)), fast_dls(images, 50, "cpu"),
                         F.cross_entropy, cbs=[MetricsCB(Accuracy(), quiet=True)], **kwargs)
    learn.fit(1)
    return learn


def test_predictions_on_new_data_leave_no_trace(tmp_path):
    learn = learner()
    model, state, history = {k: v.clone() for k, v in learn.model.state_dict().items()}, torch.get_rng_state(), \
        list(learn.metrics.history)
    x = learn.dls.valid.get(torch.arange(60))[0]
    preds, targs = get_preds(learn)
    assert learn.predict_on(x, bs=7).allclose(preds, atol=1e-6) and learn.predict_on(x).equal(preds)
    assert get_preds(learn, dl=[(x[:30], targs[:30]), (x[30:], targs[30:])])[1].equal(targs)
    learn.show_batch(4)
    assert learn.metrics.history == history and torch.get_rng_state().equal(state)
    assert all(v.equal(model[k]) for k, v in learn.model.state_dict().items())
    assert learn.dls.has_valid and isinstance(learn.dls, DataLoaders)


def test_a_learner_classifies_as_its_saved_model_does(tmp_path):
    torch.manual_seed(0)
    images = Images(*toy_images("fashion_mnist", 200, 60), "fashion_mnist", "here")
    learn = TrainLearner(pooled_resnet((4, 8)), fast_dls(images, 50, "cpu"), F.cross_entropy)
    learn.fit(1)
    saved, some = load_model(save_model(learn, tmp_path/"m.pt")), images.x_valid[:20]
    assert len(classify(learn, list(some), top=3)[0]) == 3
    of_all = [[g.name for g in classify(m, x)] for m in (learn, saved) for x in (list(some), some[:, None])]
    assert of_all == of_all[:1]*4


@pytest.mark.parametrize("there, said", [((), "at least two: it has none"), (("a",), "at least two: it has a$"),
                                         (("a", "b"), "there are no pictures")])
def test_a_folder_that_can_not_be_learned_from(tmp_path, there, said):
    for name in there:
        (tmp_path/name).mkdir()
        (tmp_path/name/".DS_Store").write_text("")
    with pytest.raises(ValueError, match=said):
        image_folder(tmp_path)


def test_a_class_without_pictures_is_no_class(tmp_path):
    for name in ("a", "b"):
        (tmp_path/name).mkdir()
    picture(tmp_path/"a"/"1.png"), picture(tmp_path/"a"/"2.png")
    with pytest.raises(ValueError, match="pictures of one class only in"):
        image_folder(tmp_path)


def test_a_folder_of_pictures_of_all_sizes(tmp_path, capsys):
    for i, name in enumerate("ab"):
        (tmp_path/name).mkdir()
        for k in range(10):
            Image.new("RGB", (20 + k, 30), (255*i, k, 0)).save(tmp_path/name/f"{k}.png")
    (tmp_path/"a"/"notes.txt").write_text("which are good")
    with pytest.warns(UserWarning, match=r"1 file left out, no pictures: .*notes\.txt"):
        images = image_folder(tmp_path, (3, 30, 20))
    assert capsys.readouterr().out.endswith("16 + 4 pictures of 2 classes, 18 of them made 30×20\n")
    assert images.names == ("a", "b") and images.x_train.shape == (16, 3, 30, 20)
    assert ((images.x_train[:, 0, 0, 0] == 255).long() == images.y_train).all()
    both = torch.cat([images.x_train, images.x_valid])[:, 1, 0, 0].sort().values
    assert both.tolist() == sorted([*range(10)]*2)         # each picture once


def rows(n: int, size: int = 6) -> datasets.Dataset:
    "A red picture of class no, a white one of class yes, by turns, in columns that have other names than ours."
    fine, coarse = (datasets.ClassLabel(names=names) for names in (["no", "yes"], ["all"]))
    kinds = datasets.Features(id=datasets.Value("string"), img=datasets.Image(), fine=fine, coarse=coarse)
    pictures = [Image.new("RGB", (size, 5), (255, 255*(i % 2), 255*(i % 2))) for i in range(n)]
    columns = {"id": list("x"*n), "img": pictures, "fine": [i % 2 for i in range(n)], "coarse": [0]*n}
    return datasets.Dataset.from_dict(columns, features=kinds)


def test_a_table_of_pictures(capsys):
    images = image_table(datasets.DatasetDict(train=rows(20)), (3, 5, 6))
    assert capsys.readouterr().out == "table: 16 + 4 pictures of 2 classes, 0 of them made 5×6\n"
    assert images.names == ("no", "yes") and images.x_train.dtype == torch.uint8
    assert images.x_train[:, 0].eq(255).all() and (images.x_train[:, 1, 0, 0] == 255).long().equal(images.y_train)
    both = datasets.DatasetDict(train=rows(10), test=rows(7), validation=rows(3, size=9))
    images = image_table(both, (1, 4, 4), quiet=True)
    assert images.x_train.shape == (10, 1, 4, 4) and images.y_valid.tolist() == [0, 1, 0]
    assert images.x_train[0].eq(76).all() and capsys.readouterr().out == ""


HAVE = "an Image and a ClassLabel: it has"


@pytest.mark.parametrize("spoil, said", [
    (lambda t: {"train": t.remove_columns("img")}, HAVE + " {'id': 'Value', 'fine': 'ClassLabel'"),
    (lambda t: {"train": t.select_columns(["id", "img"])}, HAVE + " {'id': 'Value', 'img': 'Image'}"),
    (lambda t: {"test": t}, "should have a split train"),
    (lambda t: {"train": t, "test": t.select([])}, "no pictures in table, test"),
    (lambda t: {"train": t.select([0, 2, 4])}, "pictures of one class only in table, train")])
def test_tables_that_can_not_be_learned_from(spoil, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        image_table(datasets.DatasetDict(spoil(rows(6))))


def test_the_command_takes_a_data_set_by_its_name_and_a_folder_by_its_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.load_dataset", lambda name, **kwargs: datasets.DatasetDict(train=rows(40)))
    args = "--epochs 1 --size 8 --device cpu --report none".split()
    assert groundup_train([*args, "--data", "me/mine", "--save", "m.pt"]) == 0
    assert "me/mine: 32 + 8 pictures of 2 classes, 40 of them made 8×8" in capsys.readouterr().out
    assert load_model("m.pt").config["names"] == ["no", "yes"]
    (tmp_path/"me"/"mine").mkdir(parents=True)
    for name in ("me/mine", "gone/", "./gone", "one/two/three"):
        assert groundup_train([*args, "--data", name]) == 2
        assert "asking the hub" not in capsys.readouterr().out, name


def test_a_data_set_is_not_waited_for_where_there_is_no_hub(monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as s:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", f"http://127.0.0.1:{s.getsockname()[1]}")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: pytest.fail("it tries for minutes"))
    assert groundup_train(["--data", "cifar10", "--report", "none"]) == 2
    out, err = capsys.readouterr()
    assert out == "cifar10 is no folder: asking the hub for a data set of this name\n" and "refused" in err
    assert err.startswith("groundup-train: cifar10 is no folder, and no data set that could be had: ")


SLIM = """
import sys
sys.modules |= {"datasets": None, "pyarrow": None}
import torch, torch.nn.functional as F
import groundup as gu
x, y = torch.randint(256, (60, 3, 12, 20), dtype=torch.uint8), torch.arange(60) % 3
learn = gu.TrainLearner(gu.pooled_resnet((4, 8), ni=3, n_out=3), gu.fast_dls(gu.Images(x, y, x, y), 20, "cpu"),
                        F.cross_entropy, cbs=[gu.MetricsCB(gu.Accuracy())])
learn.fit(1)
gu.save_model(learn, "m.pt"), gu.classify(gu.load_model("m.pt"), x[:2])
sys.exit(gu.groundup_train("--data cifar10 --report none".split()))
"""


def test_without_datasets_there_is_training_and_a_word_how_to_have_it(tmp_path):
    done = run(*STRICT, "-c", SLIM, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "groundup-train: cifar10 is no folder, and the hub needs: pip install "
                                              '"groundup[data]"\n')
