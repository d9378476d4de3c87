"""The command `groundup-train` and the page it writes, from outside: what chapter 18 can't test in its own kernel."""
import io
import os
import re
import signal
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from PIL import Image, ImageDraw
from torch import nn

from exp.nb00c import Images, toy_images
from exp.nb08 import DataLoaders
from exp.nb09 import Accuracy, MetricsCB
from exp.nb09b import TrainLearner
from exp.nb12c import fast_dls
from exp.nb13b import load_model
from exp.nb14 import confusion_matrix
from exp.nb14a import get_preds, groundup_predict
from exp.nb17a import _HardestCB, confusion_picture, worst_pairs, write_report
from exp.nb18 import groundup_train, train_options

TINY = "--epochs 1 --bs 64 --n_train 192 --n_valid 100".split()
COMMAND = [sys.executable, "-m", "exp.nb18"]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}


class Page(HTMLParser):
    "Tags that are open, texts of headings, pictures, and every address the page has."
    def __init__(self, text: str):
        super().__init__()
        self.open, self.addresses, self.pictures, self.headings = [], [], [], []
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.pictures += [dict(attrs)] if tag == "img" else []
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "background")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2"):
            self.headings.append(data)


def learner(source: str = "built-in", **kwargs) -> TrainLearner:
    "A small net after an epoch on a few generated images, which it may believe to be real."
    images = Images(*toy_images("fashion_mnist", 300, 120), "fashion_mnist", source)
    torch.manual_seed(42)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    learn = TrainLearner(model, fast_dls(images, 100, "cpu"), F.cross_entropy, cbs=[MetricsCB(Accuracy(), quiet=True)])
    learn.fit(1, **kwargs)
    return learn


def run(*args, cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    env = ENV | kwargs.pop("env", {})
    return subprocess.run([*COMMAND, *map(str, args)], cwd=cwd, capture_output=True, encoding="utf-8", timeout=300,
                          env=env, **kwargs)


def test_a_run_saves_the_model_and_writes_a_page(tmp_path):
    done = run(*TINY, "--save", "m.pt", "--report", "out/page.html", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert "left" not in done.stdout and "\r" not in done.stdout and "\x1b" not in done.stdout       # it is a log
    assert re.search(r"^ *epoch +train_loss", done.stdout, re.M)
    assert sum(bool(re.match(r"(T-shirt/top|Bag|Ankle boot) +\d+ +\d", ln)) for ln in lines) == 3
    assert lines[-1] == f"page: {(tmp_path / 'out/page.html').resolve()}"
    assert load_model(tmp_path / "m.pt")(torch.randn(2, 1, 28, 28)).shape == (2, 10)
    assert {p.name for p in tmp_path.rglob("*")} == {"m.pt", "out", "page.html"}
    page = Page((tmp_path / "out/page.html").read_text(encoding="utf-8"))
    assert page.headings[1:] == ["How it went", "Where it fails", "The hardest images", "Inside the network"]
    assert all(a.startswith("data:") for a in page.addresses) and all(p["alt"] for p in page.pictures)


def test_a_page_says_how_it_was_made(tmp_path):
    args = [*TINY, "--augment", "flip,crop", "--seed", "7", "--report", "my page.html", "--float32"]
    done = run(*args, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "my page.html").read_text(encoding="utf-8")
    how = "AdamW with a rate up to 0.01, weight decay 0.01, batches of 64, augmentation RandFlip, RandCrop, seed 7"
    command = f"groundup-train {' '.join(TINY)} --augment flip,crop --seed 7 --report &#x27;my page.html&#x27; "
    for said in (how, command):
        assert said in text


@pytest.mark.parametrize(("rank", "writes"), [("0", True), ("1", False)])
def test_one_of_several_processes_writes(monkeypatch, rank, writes):
    monkeypatch.setenv("RANK", rank)
    seen, out = {}, sys.stdout
    monkeypatch.setattr("exp.nb18._train", lambda opts: seen.update(vars(opts)))
    files = ("save", "report", "log", "tensorboard")
    try:
        assert groundup_train([arg for k in files for arg in (f"--{k}", f"{k}.file")]) == 0
    finally:
        sys.stdout = out
    assert [seen[k] is not None for k in files] == [writes]*4


def test_versions(tmp_path):
    done = run("--version", cwd=tmp_path)
    assert done.returncode == 0 and re.fullmatch(r"groundup \S+\n", done.stdout)


def test_a_page_of_another_learner(tmp_path):
    "Neither from `train` nor with a recorder: what is not known is left out."
    path = write_report(learner("folder"), tmp_path / "page.html", title="<Mine> & yours")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.headings == ["<Mine> & yours", "How it went", "Where it fails", "The hardest images"]
    assert "generated" not in text.lower()
    assert not re.search(r"https?:|@import|url\(", re.sub(r'base64,[^"]*', "", text))


def test_names_with_markup_are_shown_as_text(tmp_path):
    learn = learner("folder")
    learn.dls.names = [f"<script>{i}</script> &amp;" for i in range(10)]
    learn.config = {"builder": "<b>net", "dataset": "<i>mine"}
    text = write_report(learn, tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.headings[0].endswith("of <i>mine recognised") and "<b>net" not in text
    assert "<script>" not in text and "&lt;script&gt;0" in text and "&amp;amp;" in text


@pytest.mark.skipif(os.name == "nt", reason="permissions")
def test_a_page_keeps_the_permissions_it_had(tmp_path):
    learn, path = learner(), tmp_path / "page.html"
    write_report(learn, path)
    path.chmod(0o600)
    assert write_report(learn, path).stat().st_mode & 0o777 == 0o600


def test_a_page_says_when_images_are_generated(tmp_path):
    text = write_report(learner(), tmp_path / "page.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "generated images" in page.headings[0]
    assert text.index("Generated images.") < text.index("How it went")


def test_a_page_without_errors_has_no_hardest_images(tmp_path):
    learn = learner()
    dl = learn.dls.valid
    with torch.no_grad():
        learn.dls._valid = [(xb, learn.model(xb).argmax(1)) for xb, _ in dl]
    path = write_report(learn, tmp_path / "page.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert "The hardest images" not in page.headings and page.headings[0].startswith("100.0%")


@pytest.mark.parametrize("line", [
    "--epochs 0", "--epochs three", "--epochs 1.5", "--epochs", "--epochs=", "--lr nan", "--lr 0", "--lr fast",
    "--bs 1", "--bs -3", "--seed -1", "--dataset imagenet", "--device quantum", "--device cuda:99", "--augment mirror",
    "--model vgg", "--n_train 0", "--n_train 70000", "--n_valid many", "--resume nowhere.pt", "--epcohs 3", "-d mnist",
    "3", "--weights nowhere.pt", "--overwrite=yes", "--save .", "--report .", "--checkpoint .", "--save settings.ini",
    "--report settings.ini", "--checkpoint settings.ini", "--save new --checkpoint new"])
def test_bad_arguments_are_one_line_and_status_2(line, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "cuda:99" in line and torch.cuda.is_available() and "rehearsal" in sys.modules:
        pytest.skip("the rehearsal of CUDA has a hundred devices")
    before = (ROOT / "settings.ini").read_bytes()
    options = line.split() + ([] if "--report" in line else ["--report=none"])
    if line == "--epochs":
        options.reverse()                                  # nothing may follow it
    assert groundup_train([*TINY, *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith("groundup-train: ") and err.count("\n") == 1 and "Traceback" not in err
    assert (ROOT / "settings.ini").read_bytes() == before


def test_a_saved_model_is_kept_unless_told_otherwise(tmp_path, capsys):
    (tmp_path / "m.pt").write_bytes(b"hours of work")
    args = [*TINY, "--report", "none", "--save", str(tmp_path / "m.pt")]
    assert groundup_train(args) == 2
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "m.pt").read_bytes() == b"hours of work"
    assert groundup_train([*args, "--overwrite"]) == 0
    load_model(tmp_path / "m.pt")


def test_files_that_cannot_be_had_are_no_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GROUNDUP_DATA", str(tmp_path / "gone"))
    assert groundup_train([*TINY, "--report", "none"]) == 2
    assert "GROUNDUP_DATA" in capsys.readouterr().err


def test_help_names_every_option():
    done = run("--help", cwd=ROOT)
    text = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    options = [s for a in train_options()._actions for s in a.option_strings]
    assert "--recipe" in options and [s for s in options if s not in text] == []
    assert "Exit status" in text and "None" not in text


def test_arguments_are_taken_as_text():
    def given(line: str) -> dict:
        "What is not as by default."
        usual, opts = (vars(train_options().parse_args(a)) for a in ([], line.split()))
        return {k: v for k, v in opts.items() if v != usual[k]}

    assert given("--save 01 --seed -3 --report=a.html --weights none") == {"save": "01", "seed": -3, "report": "a.html"}
    assert given("--n-train 5 --overwrite --epochs 4 --lr 1e-3 --augment auto") == \
        {"epochs": 4, "n_train": 5, "overwrite": True, "lr": 0.001, "augment": "auto"}
    with pytest.raises(ValueError, match="unrecognized arguments: -s 3"):
        given("-s 3")


def test_a_run_goes_on_from_its_checkpoint(tmp_path, capsys):
    "The run that was stopped after an epoch ends with the weights of the one that was not."
    args = "--epochs 2 --bs 64 --n_train 192 --n_valid 100 --report none --device cpu".split()
    state, whole, halves = (str(tmp_path / k) for k in ("fit.pt", "whole.pt", "halves.pt"))
    assert groundup_train([*args, "--save", whole]) == 0
    with patch("exp.nb13b.CheckpointCB._epoch", autospec=True) as epoch:
        def stops(cb, learn, one_epoch):
            if learn.epoch == 1:
                raise KeyboardInterrupt
            one_epoch()
            cb.save(learn, 1, 0)
        epoch.side_effect = stops
        assert groundup_train([*args, "--save", halves, "--checkpoint", state]) == 130
    assert f"kept: {state}" in capsys.readouterr().err
    assert groundup_train([*args, "--save", halves, "--resume", state]) == 0
    one, other = (load_model(p).state_dict() for p in (whole, halves))
    assert all(one[k].equal(other[k]) for k in one)


def test_what_resume_and_weights_take_is_said_if_it_is_mistaken(tmp_path, capsys):
    "A model is no run that can go on, a run no model, and there has to be something to go on with."
    model, state = str(tmp_path / "m.pt"), str(tmp_path / "run.pt")
    assert groundup_train([*TINY, "--report", "none", "--save", model, "--checkpoint", state]) == 0
    capsys.readouterr()
    for option, said in ((f"--resume {model}", "--weights"), (f"--weights {state}", "--resume"),
                         ("--resume gone.pt", "no such file"), (f"--resume {state} --checkpoint x", "not allowed")):
        assert groundup_train([*TINY, "--report", "none", *option.split()]) == 2, option
        assert said in capsys.readouterr().err


def photographs(folder: Path, n: int = 24) -> Path:
    "Two classes of coloured pictures in different sizes, and a file that is none."
    for name in ("ring", "cross"):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            im = Image.new("RGB", (40 + i, 50), (255 - i, 250, 240))
            pen = ImageDraw.Draw(im)
            if name == "ring":
                pen.ellipse((8, 8, 32, 36), outline=(200, 5*i, 0), width=4)
            else:
                pen.line((6, 6, 34, 40), (0, 5*i, 200), 4)
                pen.line((6, 40, 34, 6), (0, 5*i, 200), 4)
            im.save(folder / name / f"{i}.{'png' if i % 2 else 'jpg'}")
    (folder / "ring" / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_of_photographs(tmp_path, capsys):
    folder, model, page = photographs(tmp_path / "pics"), str(tmp_path / "m.pt"), tmp_path / "page.html"
    args = "--epochs 6 --bs 16 --size 32 --device cpu".split()
    assert groundup_train([*args, "--data", str(folder), "--save", model, "--report", str(page)]) == 0
    out, err = capsys.readouterr()
    assert err.count("\n") == 1 and "groundup-train: 1 file left out, no pictures:" in err and "notes.txt" in err
    assert "38 + 10 pictures of 2 classes, 48 of them made 32×32" in out and "cross" in out
    assert ">cross<" in page.read_text(encoding="utf-8")
    assert groundup_predict([model, str(folder / "ring" / "3.png"), str(folder / "cross" / "4.jpg")]) == 0
    assert [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()] == ["ring", "cross"]
    assert groundup_train([*args, "--data", str(folder), "--weights", model, "--grey", "--report", "none"]) == 2
    assert f"{model} holds " in capsys.readouterr().err


@pytest.mark.parametrize("made, more, said", [
    ([], "", "should have a folder for each class"), (["one"], "", "should have a folder for each class"),
    (["one", "two"], "", "there are no pictures"), (None, "", "gone"),
    (["one", "two"], "--recipe 5", "--data and --recipe"), (["one"], "--dataset mnist", "--data and --dataset")])
def test_folders_that_cannot_be_trained_on(tmp_path, capsys, made, more, said):
    for name in made or []:
        (tmp_path / "pics" / name).mkdir(parents=True)
    where = tmp_path / ("gone" if made is None else "pics")
    if made == []:
        where.mkdir()
    assert groundup_train(["--data", str(where), "--report", "none", *more.split()]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def test_a_recipe_leaves_a_log_and_runs_can_be_compared(tmp_path, capsys):
    logs = [str(tmp_path / f"{seed}.csv") for seed in (0, 1)]
    for log in logs:
        args = ["--recipe", "half", "--n_train", "1024", "--n_valid", "100", "--report", "none", "--log", log]
        assert groundup_train([*args, "--seed", log[-5]]) == 0
    assert capsys.readouterr().err == ""
    page = str(tmp_path / "both.html")
    assert groundup_train(["--compare", *logs, "--report", page]) == 0
    both = Page((tmp_path / "both.html").read_text(encoding="utf-8"))
    assert len(both.pictures) == 4 and "2 runs" in both.headings
    for more, said in (("--lr 3", "takes no --lr"), ("--dataset mnist", "the recipes are for fashion_mnist"),
                       ("--device cpu", "takes no --device")):
        assert groundup_train([*args, *more.split()]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C can't be sent to one process there")
def test_ctrl_c_ends_it_and_says_what_was_kept(tmp_path):
    args = "--epochs 500 --bs 64 --n_train 192 --n_valid 100 --save m.pt --report page.html".split()
    proc = subprocess.Popen([*COMMAND, *args], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=ENV | {"PYTHONUNBUFFERED": "1"})
    for line in proc.stdout:
        if "train_loss" in line:                           # the first epoch is over
            break
    proc.send_signal(signal.SIGINT)
    _, err = proc.communicate(timeout=120)
    assert proc.returncode == 130
    assert err == "groundup-train: interrupted; nothing was written, nothing is lost\n"
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_no_bars_where_there_is_no_cursor(monkeypatch, capsys):
    "A terminal that calls itself dumb gets what a log gets."
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    assert groundup_train([*TINY, "--report", "none"]) == 0
    assert "\r" not in out.getvalue() and "\x1b" not in out.getvalue() and "train_loss" in out.getvalue()


class OwnOrder:
    "Images whose mean is their class, in an order of its own in each pass."
    def __init__(self, n=200, channels=()):
        self.y, self.passes = torch.arange(n) % 10, 0
        self.x = self.y.float().reshape(-1, *[1]*(2 + len(channels))).expand(n, *channels, 8, 6).clone()
        self.x[..., 0, 0] += 1                              # a picture needs two values

    def __len__(self):
        return -(-len(self.x)//32)

    def __iter__(self):
        self.passes += 1
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.passes))
        return iter([(self.x[i], self.y[i]) for i in order.split(32)])


class FirstPixel(nn.Module):
    "Is right about classes below 6 and a little sure that all others are 0, the surer the higher they are."
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        value = x.flatten(1)[:, -1]
        guess = torch.where(value < 6, value, 0).long()
        return F.one_hot(guess, 10)*(1 + value[:, None]) + self.weight


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_pictures_are_of_the_errors_whatever_the_order_of_a_pass(channels, tmp_path):
    dl = OwnOrder(channels=channels)
    learn = TrainLearner(FirstPixel(), DataLoaders(dl, dl), F.cross_entropy, cbs=[MetricsCB(Accuracy(), quiet=True)])
    learn.fit(1, train=False)
    before = dl.passes
    text = write_report(learn, tmp_path / "page.html").read_text(encoding="utf-8")
    assert dl.passes == before + 1
    assert Page(text).headings[0].startswith("60.0%")
    assert re.findall(r"is (\d)<br>taken for (\d)", text)[:21] == [("9", "0")]*20 + [("8", "0")]
    get_preds(learn, hardest := _HardestCB(70))
    assert [(t, guess) for _, t, guess, _ in hardest.found] == [(t, 0) for t in (9, 8, 7, 6) for _ in range(20)][:70]
    shape = (3, 8, 6) if channels == (3,) else (8, 6)
    assert all(image.shape == shape and (image[..., -1, -1] == t).all() for _, t, _, image in hardest.found)


@pytest.mark.parametrize("x, y, n", [
    (torch.rand(20, 1, 8, 8), torch.rand(20, 1), 1), (torch.rand(20, 1, 8, 8), torch.rand(20), 1),
    (torch.rand(20, 5), torch.arange(20) % 3, 3)])
def test_what_is_no_classifier_of_images_is_named(x, y, n, tmp_path):
    model, dl = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), n)), [(x, y)]
    loss = F.cross_entropy if n > 1 else lambda p, t: (p.flatten() - t.flatten()).square().mean()
    learn = TrainLearner(model, DataLoaders(dl, dl), loss, cbs=[MetricsCB(quiet=True)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                     # of shapes that a loss might broadcast
        learn.fit(1)
        with pytest.raises(ValueError, match="a classifier: images, scores"):
            write_report(learn, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_page_about_images_of_ones_own(tmp_path):
    "Colours, another size, own names, and nobody said where they come from: they are not called generated."
    x, y = torch.randint(256, (60, 3, 12, 20), dtype=torch.uint8), torch.arange(60) % 3
    images = Images(x, y, x, y, "mine", names=("cat", "dog", "fish"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(3*12*20, 5))         # two classes more than there are
    learn = TrainLearner(model, fast_dls(images, 20, "cpu"), F.cross_entropy, 1e-4,
                         [MetricsCB(Accuracy(), quiet=True)])
    learn.fit(1)
    text = write_report(learn, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "fish" in text and "generated images" not in text.lower()


@pytest.mark.parametrize("n", [2, 20, 40, 100])
def test_the_picture_of_many_classes_can_be_read(n):
    "No two names overlap, no number leaves its square, and the worst pairs are said in words."
    preds = torch.arange(1000) % n
    targs = torch.where(torch.arange(1000) % 7 > 0, preds, (preds + 1) % n)
    names = [f"a class called {i}" for i in range(n)]
    fig = confusion_picture(cm := confusion_matrix(preds, targs, n), names)
    fig.draw_without_rendering()
    ax = fig.axes[0]
    across, down = ([t.get_window_extent() for t in axis.get_ticklabels()[:n]] for axis in (ax.xaxis, ax.yaxis))
    assert all(a.x1 <= b.x0 for a, b in pairwise(across)) and all(a.y0 >= b.y1 for a, b in pairwise(down))
    assert max((t.get_window_extent().width for t in ax.texts), default=0) < ax.get_window_extent().width/n
    assert bool(ax.texts) == (n <= 20)
    assert fig.get_figwidth() < 17
    first = worst_pairs(cm, names).rows[1]
    assert first[2] == str(int(cm.clone().fill_diagonal_(0).max())) and first[0] != first[1]


@pytest.mark.skipif(sys.platform == "win32", reason="make")
def test_make_run_trains_and_make_run_nb_runs_a_notebook():
    make = ["make", "--no-print-directory", "-n", "-o", ".venv/.ready", "run"]
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert re.fullmatch(r"\S*groundup-train --epochs 3 --report _out/showcase\.html *", shown)
    train_options().parse_args(shown.split()[1:])
    shown = subprocess.run([*make, "NB=01_matmul"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "run_notebook.py nbs/01_matmul.ipynb" in shown
