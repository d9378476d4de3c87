"""The command `groundup-train` and the page it writes, from outside: what chapter 18 can't test in its own kernel."""
import io
import os
import re
import signal
import subprocess
import sys
from configparser import ConfigParser
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch import nn

from exp.nb00c import Images, toy_images
from exp.nb09 import Accuracy, Callback, MetricsCB
from exp.nb09a import TrainLearner
from exp.nb12c import fast_dls
from exp.nb13b import load_model
from exp.nb18 import LiveCB, arguments, main, write_report

TINY = "--epochs 1 --bs 64 --n_train 192 --n_valid 100".split()
COMMAND = [sys.executable, "-m", "exp.nb18"]


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
    env = os.environ | {"PYTHONPATH": str(ROOT)} | kwargs.pop("env", {})
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
    targs = learn.dls.valid.dataset.y
    path = write_report(learn, tmp_path / "page.html", preds=(F.one_hot(targs, 10).float(), targs))
    page = Page(path.read_text(encoding="utf-8"))
    assert "The hardest images" not in page.headings and page.headings[0].startswith("100.0%")


@pytest.mark.parametrize("line", [
    "--epochs 0", "--epochs three", "--epochs 1.5", "--epochs", "--epochs=", "--lr nan", "--lr 0", "--lr fast",
    "--bs 1", "--bs -3", "--seed -1", "--dataset imagenet", "--device quantum", "--device cuda:99", "--augment mirror",
    "--model vgg", "--n_train 0", "--n_train 70000", "--n_valid many", "--resume nowhere.pt", "--epcohs 3", "-d mnist",
    "3", "--overwrite=yes", "--save .", "--report .", "--save settings.ini", "--report settings.ini", "--"])
def test_bad_arguments_are_one_line_and_status_2(line, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    before = (ROOT / "settings.ini").read_bytes()
    options = line.split() + ([] if "--report" in line else ["--report=none"])
    if line == "--epochs":
        options.reverse()                                  # nothing may follow it
    assert main(options) == 2
    err = capsys.readouterr().err
    assert err.startswith("groundup-train: ") and err.count("\n") == 1 and "Traceback" not in err
    assert (ROOT / "settings.ini").read_bytes() == before


def test_a_saved_model_is_kept_unless_told_otherwise(tmp_path, capsys):
    (tmp_path / "m.pt").write_bytes(b"hours of work")
    args = [*TINY, "--report", "none", "--save", str(tmp_path / "m.pt")]
    assert main(args) == 2
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "m.pt").read_bytes() == b"hours of work"
    assert main([*args, "--overwrite"]) == 0
    load_model(tmp_path / "m.pt")


def test_files_that_cannot_be_had_are_no_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GROUNDUP_DATA", str(tmp_path / "gone"))
    assert main([*TINY, "--report", "none"]) == 2
    assert "GROUNDUP_DATA" in capsys.readouterr().err


def test_help_names_every_option():
    done = run("--help", cwd=ROOT)
    text = done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    for option in ("dataset", "epochs", "lr", "bs", "device", "augment", "seed", "save", "report", "n_train"):
        assert f"--{option}" in text
    assert "Exit status" in text


def test_arguments_are_taken_as_text():
    assert arguments(["--save", "01", "--seed", "-3", "--report=a b.html", "--resume", "none"]) == \
        {"save": "01", "seed": -3, "report": "a b.html", "resume": None}
    assert arguments("-e 3 --n-train 5 --overwrite --epochs 4 --lr 1e-3 --augment auto".split()) == \
        {"epochs": 4, "n_train": 5, "overwrite": True, "lr": 0.001, "augment": "auto"}
    with pytest.raises(ValueError, match="-s: no such option, did you mean --seed"):
        arguments(["-s", "3"])


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C can't be sent to one process there")
def test_ctrl_c_ends_it_and_says_what_was_kept(tmp_path):
    args = "--epochs 500 --bs 64 --n_train 192 --n_valid 100 --save m.pt --report page.html".split()
    proc = subprocess.Popen([*COMMAND, *args], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"})
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


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_the_line_is_never_wider_than_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    learner(cbs=LiveCB(every=0))
    drawn = [re.sub(r"\x1b\[\d*m", "", s) for s in re.split(r"[\r\n]", out.getvalue())]
    assert len(drawn) > 4 and max(map(len, drawn)) < columns
    assert out.getvalue().endswith("\r") or out.getvalue().endswith("\n")     # nothing is left standing


def test_no_colour_ever_and_no_line_when_told(monkeypatch):
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    learner(cbs=LiveCB(every=0))
    assert "\x1b" not in out.getvalue() and "█" in out.getvalue()
    monkeypatch.setattr(Terminal, "encoding", "cp1252")
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    learner(cbs=LiveCB(every=0))
    assert "█" not in out.getvalue() and "####" in out.getvalue()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    learner(cbs=LiveCB(every=0))
    assert out.getvalue() == ""


def test_time_left(monkeypatch):
    "A fit of 2 epochs with 3 + 1 batches, at a terminal: nothing is known after the first batch, and 0:00 at the end."
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    learn = learner()
    learn.fit(2, cbs=LiveCB(every=0))
    drawn = [s.strip() for s in re.split(r"[\r\n]", out.getvalue()) if "epoch" in s]
    assert len(drawn) == 8 and "left" not in drawn[0] and all("left" in s for s in drawn[1:])
    assert "100%" in drawn[-1] and drawn[-1].endswith("0:00 left")
    assert [" valid loss" in s for s in drawn] == [False, False, False, True]*2


class Endless:
    "A loader that does not know its length."
    def __init__(self, dl):
        self.dl = dl

    def __iter__(self):
        return iter(self.dl)


def test_time_left_without_lengths_or_validation(monkeypatch):
    learn = learner()
    learn.dls = SimpleNamespace(train=Endless(learn.dls.train), valid=None)
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    learn.fit(1, valid=False, cbs=LiveCB(every=0))
    assert "100%" in out.getvalue() and "0:00 left" in out.getvalue()


def test_the_line_leaves_metrics_as_they_were(monkeypatch):
    learn = learner()
    with pytest.raises(ZeroDivisionError):
        learn.fit(1, cbs=[LiveCB(every=0), Broken()])
    assert learn.metrics.log == learn.metrics.print_row


class Broken(Callback):
    def after_batch(self, learn):
        raise ZeroDivisionError


@pytest.mark.skipif(sys.platform == "win32", reason="make")
def test_make_run_trains_and_make_run_nb_runs_a_notebook():
    make = ["make", "--no-print-directory", "-n", "-o", ".venv/.ready", "run"]
    shown = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert re.fullmatch(r"\S*groundup-train --epochs 3 --report _out/showcase\.html *", shown)
    arguments(shown.split()[1:])
    shown = subprocess.run([*make, "NB=01_matmul"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "run_notebook.py nbs/01_matmul.ipynb" in shown


def test_the_command_in_settings_is_this_one():
    cfg = ConfigParser()
    cfg.read(ROOT / "settings.ini", encoding="utf-8")
    commands = dict(line.split("=") for line in cfg["DEFAULT"]["console_scripts"].split())
    module, function = commands["groundup-train"].split(":")
    assert getattr(import_module(module), function) is main
