"""`make gpu`: parts in turn, each within the time that is left, what they print kept in a log."""
import csv
import runpy

import pytest
import torch
from conftest import ROOT


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    "The script's names, with a card that is not there and parts that take no time."
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    names = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))
    space = names["main"].__globals__
    space["RECORD"], space["PAGES"] = tmp_path / "gpu.csv", tmp_path / "pages"
    space["PARTS"] = {"says two lines": (0, ["-c", "print('one'); print('two')"]),
                      "fails": (0, ["-c", "print('before'); raise SystemExit(3)"]),
                      "hangs": (0, ["-c", "print('begun', flush=True); import time; time.sleep(60)"]),
                      "too long": (1e6, ["-c", "print('never')"])}
    return space


def test_parts_run_in_turn_and_what_they_print_is_kept(gpu, capsys):
    for _ in range(2):                                     # a second run replaces the rows of the first
        assert gpu["main"](8) == 1
    out = capsys.readouterr().out
    assert "exit status 3" in out and "stopped: no time left" in out and "left out: no time" in out
    rows = list(csv.DictReader(gpu["RECORD"].open(encoding="utf-8")))
    assert [(r["part"], r["line"]) for r in rows] == [("says two lines", "one"), ("says two lines", "two"),
                                                      ("fails", "before"), ("hangs", "begun")]
    assert {r["card"] for r in rows} == {"a card"} and all(r["commit"] and r["day"] for r in rows)


def test_its_parts_exist_and_without_a_card_nothing_runs(capsys):
    names = runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"))
    assert all(command[0] == "-m" or (ROOT / command[0]).exists() for _, command in names["PARTS"].values())
    assert {p.rsplit("/", 1)[-1][:2] for p in names["marked"]()} >= {"06", "12"}
    if not torch.cuda.is_available():
        assert names["main"]() == 2 and "no CUDA device" in capsys.readouterr().out
