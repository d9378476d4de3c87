"""What `benchmarks/records.py` does with its files: nothing is lost, nothing is counted that is of another recipe."""
import ast
import json
import os
import re
from functools import partial

import pytest
import torch
from conftest import ROOT
from filelock import FileLock

from benchmarks import records
from exp import nb15
from exp.nb00c import Images, toy_images
from exp.nb09 import Callback
from exp.nb13b import CheckpointCB, build
from exp.nb14c import GrowCB, MixCB, SqueezeExcite

TINY = {"epochs": 2, "bs": 64, "net": {"nfs": [4, 8, 16]}}


@pytest.fixture
def images():
    "A few drawn images that say they are real."
    im = toy_images("fashion_mnist", 256, 128)
    return Images(*im, "fashion_mnist", "folder")


@pytest.fixture
def tiny(monkeypatch):
    "All recipes are small ones."
    monkeypatch.setattr(records, "recipe", lambda name, **changes: nb15.recipe(name, **(TINY | changes)))


@pytest.fixture
def train(tmp_path, images, tiny):
    return partial(records.train, "5", place=tmp_path, saved=tmp_path / "saved", images=images)


def text(path) -> str:
    return path.read_text(encoding="utf-8")


def test_a_run_leaves_a_line_an_epoch_and_a_row(train, tmp_path, images):
    row = train("", 0, "all")
    assert [r["epoch"] for r in nb15.read_rows(tmp_path / "15_epochs.csv")] == ["1", "2"]
    [kept] = nb15.read_rows(tmp_path / "15_runs.csv")
    assert kept == {k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in row.items()}
    assert kept["split"] == "all" and float(kept["cpu_seconds"]) > 0 and kept["commit"]
    [wrong] = nb15.read_rows(tmp_path / "15_wrong.csv")
    pairs = [p.split(":") for p in wrong["wrong"].split()]
    assert len(pairs) == round((1 - float(kept["accuracy"]))*128)
    assert all(int(k) != images.y_valid[int(i)] for i, k in pairs)
    assert not list((tmp_path / "saved").glob("*.checkpoint"))


def test_a_killed_run_goes_on_and_ends_as_if_it_had_not_been(train, tmp_path, monkeypatch):
    whole = train("", 0, "all")
    (tmp_path / "15_runs.csv").unlink()
    lines = text(tmp_path / "15_epochs.csv")
    after_epoch = records.KeepCB.after_epoch

    def killed(cb, learn):
        after_epoch(cb, learn)
        if learn.epoch == 1:
            raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(records.KeepCB, "after_epoch", killed)
        with pytest.raises(KeyboardInterrupt):
            train("", 0, "all")
    assert not (tmp_path / "15_runs.csv").exists() and len(list((tmp_path / "saved").glob("*.checkpoint"))) == 1
    begun = []
    monkeypatch.setattr(records.KeepCB, "after_epoch", lambda cb, learn: (begun.append(learn.epoch),
                                                                          after_epoch(cb, learn)))
    again = train("", 0, "all")
    assert begun == [1]                                     # the first epoch was not done again
    assert (again["accuracy"], again["loss"]) == (whole["accuracy"], whole["loss"])
    assert len(text(tmp_path / "15_epochs.csv").splitlines()) == len(lines.splitlines()) == 3


def test_a_cut_file_is_an_error_and_stays(train, tmp_path, monkeypatch, capsys):
    train("", 0, "all")
    path = tmp_path / "15_runs.csv"
    path.write_text(text(path)[:-9])
    cut = path.read_bytes()
    with pytest.raises(ValueError, match="15_runs.csv ends within line 2|15_runs.csv, line 2"):
        records.add_rows(path, nb15.read_rows(tmp_path / "15_epochs.csv"), records.WHO)
    monkeypatch.setattr(records, "RECORDS", tmp_path)
    monkeypatch.setattr(records.status, "__defaults__", (tmp_path, tmp_path))
    assert records.main(["--status"]) == 2 and "line 2" in capsys.readouterr().err
    assert path.read_bytes() == cut


def test_other_columns_are_an_error(tmp_path):
    path = records.add_rows(tmp_path / "a.csv", [{"a": 1, "b": 0.123456789}], ["a"])
    before = text(path)
    with pytest.raises(ValueError, match="has the columns a, b"):
        records.add_rows(path, [{"a": 2, "c": 3}], ["a"])
    assert text(path) == before
    records.add_rows(path, [{"a": 2, "b": 5}, {"a": 1, "b": 4}], ["a"])
    assert [r["b"] for r in nb15.read_rows(path)] == ["5", "4"]


def test_status_counts_this_version_and_names_others(tmp_path, monkeypatch):
    run = {**records.who("5", "", 0, "all"), "accuracy": "0.9400", "views": "0.9500"}
    path = records.add_rows(tmp_path / "15_runs.csv", [run, {**run, "seed": 1, "version": 0}], records.WHO)
    [line] = [r for r in records.status(tmp_path, tmp_path).rows if r[:3] == ["5", "as it is", "all"]]
    assert line[3:] == ["1/5", "1 2 3 4", "94.00", "95.00"]
    assert ["5", "other runs, version 0", "", "1", "", "", ""] in records.status(tmp_path, tmp_path).rows
    assert len(nb15.read_rows(path)) == 2


def test_verify_repeats_a_run_and_refuses_another_recipe(train, tmp_path, images, capsys):
    train("", 0, "all")
    verify = partial(records.verify, "5", 0, tmp_path, tmp_path / "verify", images)
    assert verify() and "+0.00 points" in capsys.readouterr().out
    path = tmp_path / "15_runs.csv"
    [row] = nb15.read_rows(path)
    good = text(path)
    records.add_rows(path, [{**row, "accuracy": "0.01"}], records.WHO)
    assert not verify()
    path.write_text(good.replace(row["digest"], "0000abcd"))
    with pytest.raises(ValueError, match="0000abcd.*check out that commit"):
        verify()
    with pytest.raises(ValueError, match="no run of recipe 20 is recorded"):
        records.verify("20", 0, tmp_path, tmp_path / "verify", images)


def test_verify_takes_the_shortest_run_of_this_kind_of_processor(train, tmp_path, images, capsys):
    rows = [train("", s, "all") for s in range(3)]
    path, verify = tmp_path / "15_runs.csv", partial(records.verify, None, None, tmp_path, tmp_path / "verify", images)
    for row, seconds in zip(rows, (30., 20., 10.), strict=True):
        row["cpu_seconds"] = seconds
    rows[2]["machine"] = "Another, 1 thread"
    records.add_rows(path, rows, records.WHO)
    assert verify() and "recipe 5, seed 1" in (out := capsys.readouterr().out) and "two kinds" not in out
    records.add_rows(path, [{**r, "machine": "Another, 1 thread"} for r in rows], records.WHO)
    assert verify() and "two kinds of processor" in (out := capsys.readouterr().out) and "recipe 5, seed 2" in out
    assert not records.processor("Some CPU, 3.2 GHz, 2 threads").endswith("threads")
    assert records.processor("NVIDIA H200") == "NVIDIA H200"


def test_verify_trains_with_as_many_threads_as_the_run(train, tmp_path, images):
    row = {**train("", 0, "all"), "threads": 2}
    records.add_rows(tmp_path / "15_runs.csv", [row], records.WHO)
    before = torch.get_num_threads()
    records.verify("5", 0, tmp_path, tmp_path / "verify", images)
    [twin] = nb15.read_rows(tmp_path / "verify" / "15_runs.csv")
    assert twin["threads"] == "2" and torch.get_num_threads() == before


def test_drawn_images_make_no_record(tmp_path, tiny):
    with pytest.raises(ValueError, match="records are of the real images"):
        records.train("5", "", 0, "all", tmp_path, tmp_path, toy_images("fashion_mnist", 64, 64))
    assert not list(tmp_path.glob("*.csv"))


def test_one_process_at_a_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(records, "SAVED", tmp_path)
    with FileLock(tmp_path / ".lock"):
        assert records.main(["--queue", "5"]) == 1
    assert "another process is at it" in capsys.readouterr().err
    assert records.main(["--queue", "6"]) == 2 and "no stage 6, only try5, 5, tricks" in capsys.readouterr().err


@pytest.mark.parametrize("variant", ["lr=1", "opt.rate=1", "opt.lr.x=1", "nonsense"])
def test_an_unknown_change_is_an_error(variant):
    with pytest.raises(ValueError, match="a recipe has no"):
        records.changed("5", variant)


def test_changes_are_what_they_say():
    assert records.changed("5", "opt.lr=0.5 net.nfs=[1,2] opt.name=sgd")["opt"]["lr"] == 0.5
    assert records.changed("half", "none of them")["net"]["act"] == "relu"
    for v in records.ABLATIONS:
        assert records.digest(records.changed("half", v)) != records.digest(nb15.recipe("half")), v


def test_the_final_runs_are_of_the_recipes_as_they_are():
    "A recipe that is changed needs a new version: the runs of the old one are not its own."
    rows = [r for r in nb15.read_rows(ROOT / "records" / "15_runs.csv") if r["variant"] == ""]
    for r in rows:
        now = nb15.recipe(r["recipe"])
        assert int(r["version"]) < now["version"] or r["digest"] == records.digest(now), r


def test_runs_of_this_version_are_of_the_plans_that_their_names_stand_for():
    for r in nb15.read_rows(ROOT / "records" / "15_runs.csv"):
        now = records.changed(r["recipe"], r["variant"])
        assert int(r["version"]) < now["version"] or r["digest"] == records.digest(now), r


def test_mixing_is_in_long_recipes_and_growing_in_none_unless_they_are_asked_for(images):
    for name in nb15.RECIPES:
        assert "grow" not in (r := nb15.recipe(name)) and "se" not in r["net"]
        assert ("mix" in r) == (name in (20, 50))
    for v, n in (({}, 1), ({"mix": None}, 0)):
        learn = nb15.record_learner(nb15.recipe(20, net={"nfs": [4, 8, 16]}, **v), images)
        assert sum(isinstance(cb, MixCB) for cb in learn.cbs) == n
    kinds = {"CutMix": MixCB, "MixUp": MixCB, "growing pictures": GrowCB}
    for v, kind in kinds.items():
        learn = nb15.record_learner(records.changed("half", v), images)
        assert [type(cb) for cb in learn.cbs if isinstance(cb, (MixCB, GrowCB))] == [kind]
    plain, se = (nb15.record_learner(records.changed("half", v), images) for v in ("", "squeeze-and-excitation"))
    assert not any(isinstance(m, SqueezeExcite) for m in plain.model.modules())
    assert sum(isinstance(m, SqueezeExcite) for m in se.model.modules()) == 3
    in_groups = sum(len(g["params"]) for g in se.opt_func(se.model.parameters(), lr=1.).param_groups)
    assert in_groups == sum(p.requires_grad for p in se.model.parameters())


def test_all_of_it_together_trains_is_built_again_and_goes_on_after_a_kill(tmp_path, images):
    class Kill(Callback):
        def after_step(self, learn):
            if (learn.epoch, learn.iter) == (1, 1):
                raise RuntimeError("killed")

    def fit(*cbs):
        plan = nb15.recipe("half", **{**TINY, "net": {"nfs": [4, 8, 16], "se": True}}, grow=[14], erase=0.2,
                           mix={"kind": "cutmix"}, average={"decay": 0.9})
        learn = nb15.record_learner(plan, images, 1, cbs)
        learn.fit(2)
        return learn
    whole, file = fit(), tmp_path / "a.checkpoint"
    with pytest.raises(RuntimeError, match="killed"):
        fit(CheckpointCB(file, every=1), Kill())
    again = fit(CheckpointCB(file, every=1, resume=True)).model.state_dict()
    assert all(v.equal(again[k]) for k, v in whole.model.state_dict().items())
    build(whole.config).load_state_dict(again)


@pytest.mark.parametrize("variant, plan", [
    ("grow=[14,20] epochs=4", {"grow": [14, 20], "epochs": 4}), ('mix={"kind":"mixup","alpha":0.1}',
                                                                {"mix": {"kind": "mixup", "alpha": 0.1}})])
def test_what_a_recipe_may_have_besides_can_be_said_in_a_variant(variant, plan):
    assert records.changed("5", variant) == {**nb15.recipe("5"), **plan}


def test_a_race_is_of_three_seeds_on_an_idle_machine_and_keeps_what_it_has(tiny, tmp_path, images, monkeypatch):
    n, threads = [], torch.get_num_threads()
    monkeypatch.setattr(records.torch, "set_num_threads", n.append)
    race = partial(records.race, place=tmp_path, images=images)
    monkeypatch.setattr(records.os, "getloadavg", lambda: (1.3, 0, 0), raising=False)
    with pytest.raises(ValueError, match="load of this machine is 1.3"):
        race([("5", "")], [0])
    assert not list(tmp_path.iterdir()) and not n
    monkeypatch.setattr(records.os, "getloadavg", lambda: (0.1, 0, 0), raising=False)
    race([("5", ""), ("5", "grow=[14]")], [0])
    first = text(tmp_path / "15_time.csv")
    assert n == [os.cpu_count()] and torch.get_num_threads() == threads
    rows = nb15.read_rows(tmp_path / "15_time.csv")
    assert list(rows[0]) == list(nb15.read_rows(ROOT / "records" / "15_runs.csv")[0])     # the same columns
    assert all(float(r["seconds"]) > 0 and r["split"] == "all" for r in rows)
    race([("5", ""), ("5", "grow=[14]")], [0])
    assert text(tmp_path / "15_time.csv") == first          # nothing is timed twice


def test_times_says_who_has_reached_94_and_who_has_too_few_seeds(tmp_path):
    def row(variant, seed, accuracy, seconds):
        return {**records.who("5", variant, seed, "all"), "accuracy": accuracy, "seconds": seconds, "machine": "m"}
    assert len(records.times(tmp_path).rows) == 1
    rows = [row(v, s, a, t) for v, a, t in (("", 0.941, 9.), ("epochs=3", 0.9399, 5.)) for s in range(3)]
    records.add_rows(tmp_path / "15_time.csv", [*rows, row("epochs=4", 0, 0.95, 7.)], (*records.WHO, "machine"))
    shown = [(r[3], r[4], r[7]) for r in records.times(tmp_path).rows[1:]]
    assert shown == [("epochs=3", "3", "no"), ("epochs=4", "1", "too few seeds"), ("as it is", "3", "yes")]


def test_the_candidates_are_recipes_that_can_be_trained():
    for name, variant in records.RACE:
        plan = records.changed(name, variant)
        assert len(plan.get("grow", [])) < plan["epochs"]
    assert len(set(records.RACE)) == len(records.RACE)


def test_the_pages_tables_have_every_trick_that_is_trained():
    cells = ["".join(c["source"]) for c in json.loads(text(ROOT / "nbs" / "15_records.ipynb"))["cells"]]
    names = {}
    for name in ("TRICKS", "OTHERS"):
        [cell] = [s for s in cells if s.startswith(f"{name} = (")]
        names[name] = ast.literal_eval(cell.partition("=")[2].partition("\ndef ")[0].strip())
    both = {f"without {k}" for k in names["TRICKS"]} | {f"{k} alone" for k in names["TRICKS"]}
    assert both | set(names["OTHERS"]) | {"none of them"} == set(records.ABLATIONS)


def test_the_readme_has_the_table_of_the_records():
    found = re.search(r"<!-- records -->\n(.*?)<!-- /records -->", text(ROOT / "README.md"), re.S)
    assert found, "the README has no table of records between <!-- records --> and <!-- /records -->"
    assert found.group(1) == records.readme(), "run: python benchmarks/records.py --readme"


def test_the_readmes_numbers_are_of_the_newest_versions_final_runs(tmp_path):
    def row(seed, accuracy, cpu, **other):
        return {**records.who("5", "", seed, "all"), "accuracy": accuracy, "views": 0.95, "cpu_seconds": cpu, **other}
    rows = [row(0, 0.94, 540.), row(1, 0.942, 1200.), row(2, 0.5, 60., version=1), row(3, 0.5, 60., split="held")]
    records.add_rows(tmp_path / "15_runs.csv", rows, records.WHO)
    first = records.readme(tmp_path).splitlines()[2]
    assert first == "| 5 | 2 | 94.10% | 94.20% | 94.00% | 0.14% | 95.00% | 9 to 20 min |"
    records.add_rows(tmp_path / "15_runs.csv", [row(1, 0.942, 541.)], records.WHO)
    assert records.readme(tmp_path).splitlines()[2].endswith("| 95.00% | 9 min |")
