"""Trains the recipes of chapter 15 and keeps what comes out in records/: see `--help`.

    python benchmarks/records.py --status                     what is there, and what is missing
    python benchmarks/records.py --queue [STAGE ...]          train what is missing, the most useful first
    python benchmarks/records.py --run 5 --seeds 0 1 2 --split held --set opt.lr=0.2
    python benchmarks/records.py --time                       the race to 94%, on all cores of a machine that is idle
    python benchmarks/records.py --time --run 5 --set epochs=4 grow=[14]
    python benchmarks/records.py --readme                     put the table of the runs into README.md
    python benchmarks/records.py --verify                     train a recorded run again, and say whether it ends
                                                              within 0.15 points: what --run and --seeds name, or
                                                              the shortest one of this kind of processor

Choices are made with `--split held`: 5,000 of the training images are held out. With `--split all` all 60,000 train,
and the test images are looked at once, when the run has ended. A run that was killed goes on from `_out/records/`.
A line an epoch goes to records/15_epochs.csv, one a run to 15_runs.csv, what it got wrong to 15_wrong.csv. Runs of
`--time` train on all images, without checkpoints, and have a file of their own, 15_time.csv: seconds are of the clock.
"""
import argparse
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev

import torch
from filelock import FileLock, Timeout

from exp.nb00a import Table, machine_name, write_file
from exp.nb00c import Images, get_images
from exp.nb06 import default_device
from exp.nb09 import Callback
from exp.nb13b import CheckpointCB
from exp.nb14 import get_preds, tta
from exp.nb15 import VIEWS, held_out, read_rows, recipe, record_learner

ROOT = Path(__file__).parents[1]
RECORDS, SAVED = ROOT / "records", ROOT / "_out" / "records"
WHO = ("recipe", "version", "variant", "seed", "split")
FINAL = {"5": 5, "20": 3, "50": 3}                              # seeds of the final recipes
TOLERANCE = 0.0015


def merged(changes: Iterable[Mapping]) -> dict:
    "One set of changes to a recipe out of several, the last one counts."
    out: dict = {}
    for c in changes:
        for k, v in c.items():
            out[k] = {**out.get(k, {}), **v} if isinstance(v, Mapping) else v
    return out


SGD = {"name": "sgd", "lr": 0.05, "bias": 5.}
TRICKS: dict[str, tuple[dict, dict]] = {                        # how each is taken out, and how it is put in alone
    "smoothed labels": ({"smoothing": 0.}, {"smoothing": 0.1}),
    "whitening": ({"whiten": False}, {"whiten": True}),
    "identity start": ({"net": {"dirac": False}}, {"net": {"dirac": True}}),
    "GELU": ({"net": {"act": "relu"}}, {"net": {"act": "gelu"}}),
    "fixed scales, fast biases": ({"net": {"fixed": False}, "opt": {"bias": 1.}}, {"net": {"fixed": True},
                                                                                 "opt": {"bias": 5.}}),
    "alternating flips": ({"flip": ""}, {"flip": "alternate"}),
    "shifts": ({"shift": 0}, {"shift": 1}),
    "Muon": ({"opt": SGD}, {"opt": {"name": "muon", "lr": 0.04}})}
PLAIN = merged([out for out, _ in TRICKS.values()] + [{"opt": {**SGD, "bias": 1.}}])
ABLATIONS: dict[str, dict] = {                                  # what is changed in the recipe
    **{f"without {k}": out for k, (out, _) in TRICKS.items()}, "none of them": PLAIN,
    **{f"{k} alone": merged([PLAIN, alone]) for k, (_, alone) in TRICKS.items()},
    "random flips": {"flip": "random"}, "AdamW": {"opt": {"name": "adamw", "lr": 0.003, "rest": 0.003, "bias": 5.}},
    "average of weights": {"average": {"decay": 0.98, "every": 5}},
    "lookahead": {"average": {"decay": 0.5, "every": 5, "lookahead": True}},
    "batches of 128": {"bs": 128}, "batches of 512": {"bs": 512}, "erasing": {"erase": 0.2},
    "CutMix": {"mix": {"kind": "cutmix", "alpha": 1., "p": 0.5}}, "MixUp": {"mix": {"kind": "mixup", "alpha": 0.2}},
    "squeeze-and-excitation": {"net": {"se": True}}, "growing pictures": {"grow": [14, 20]},
    "rate highest at the start": {"schedule": {"rise": 0.}}, "rate highest half-way": {"schedule": {"rise": 0.5}}}
LADDER = [f"net.nfs=[{n},{2*n},{4*n}]" for n in (16, 64, 96)]     # other channels than those of half
RACE = [("half", "epochs=7"), ("half", "epochs=8")]


def add_rows(path: Path, rows: Iterable[Mapping], key: Sequence[str]) -> Path:
    """Keeps `rows` in the CSV file at `path`; one takes the place of an older row with the same values of `key`.

    The file is the old or the new one, whole. `ValueError` for a damaged file or other columns; then it stays.
    """
    old = read_rows(path)
    new = [{k: f"{v:.6g}" if isinstance(v, float) else str(v) for k, v in r.items()} for r in rows]
    for r in new:
        if old and list(old[0]) != list(r):
            raise ValueError(f"{path} has the columns {', '.join(old[0])}, these rows {', '.join(r)}")
    have = {tuple(r[k] for k in key) for r in new}
    kept = [r for r in old if tuple(r[k] for k in key) not in have] + new
    text = io.StringIO()
    writer = csv.DictWriter(text, list(kept[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(kept)
    return write_file(path, text.getvalue())


def digest(what: dict) -> str:
    "A few letters that change with anything in a recipe."
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


def changed(name: str, variant: str) -> dict:
    "The recipe `name` after the changes in `variant`: a name in ABLATIONS, or `opt.lr=0.2 smoothing=0` and so on."
    if variant in ABLATIONS:
        return recipe(name, **ABLATIONS[variant])
    out = recipe(name)
    for part in variant.split():
        path, sign, value = part.partition("=")
        *folders, last = path.split(".")
        place = out
        for k in folders:
            place = place.get(k) if isinstance(place, dict) else None
        free = path in ("mix", "grow") or folders in (["net"], ["average"])
        if not sign or not isinstance(place, dict) or last not in place and not free:
            raise ValueError(f"{part}: a recipe has no {path!r}")
        try:
            place[last] = json.loads(value)
        except ValueError:
            place[last] = value
    return out


def who(name: str, variant: str, seed: int, split: str) -> dict:
    "What tells a run from all others."
    r = changed(name, variant)
    return {"recipe": r["name"], "version": r["version"], "variant": variant, "seed": seed, "split": split}


def commit() -> str:
    "The commit of the checkout, short."
    git = shutil.which("git")
    args = ["-C", str(ROOT), "rev-parse", "--short=10", "HEAD"]
    return subprocess.run([git, *args], capture_output=True, text=True).stdout.strip() if git else ""


def done(run: dict, rows: list[dict]) -> dict | None:
    "The row of this run, if it is there."
    return next((r for r in rows if all(r[k] == str(run[k]) for k in WHO)), None)


class KeepCB(Callback):
    "Counts seconds, of the clock and of the processor, over all processes that worked at a run; a line an epoch."
    order, kept = 900, ("seconds", "cpu", "before")             # behind the metrics, in front of the checkpoint

    def __init__(self, run: dict, place: Path):
        self.run, self.place, self.seconds, self.cpu, self.before = run, place, 0., 0., [0., 0.]
        self.mark = time.perf_counter(), time.process_time()

    def before_fit(self, learn) -> None:
        self.mark = time.perf_counter(), time.process_time()

    def after_batch(self, learn) -> None:
        now = time.perf_counter(), time.process_time()
        self.seconds, self.cpu = self.seconds + now[0] - self.mark[0], self.cpu + now[1] - self.mark[1]
        self.mark = now

    def after_epoch(self, learn) -> None:
        h = learn.metrics.history[-1]
        row = {**self.run, "epoch": learn.epoch + 1, "train_loss": h["train_loss"],
               "accuracy": h.get("valid_accuracy", ""), "loss": h.get("valid_loss", ""),
               "seconds": self.seconds - self.before[0], "cpu_seconds": self.cpu - self.before[1]}
        self.before = [self.seconds, self.cpu]
        add_rows(self.place / "15_epochs.csv", [row], (*WHO, "epoch"))
        print("  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)


def real_images(images=None):
    "The 60,000 and 10,000 images, or `images`; `ValueError` for drawn ones."
    images = get_images("fashion_mnist", quiet=True) if images is None else images
    if not images.real:
        raise ValueError("records are of the real images: set GROUNDUP_DATA, or let them be fetched")
    return images


def result(run: dict, plan: dict, learn, seconds: float, cpu: float) -> tuple[dict, torch.Tensor, torch.Tensor]:
    "The row of a run whose learner has been trained, what it takes each image for, and what that is."
    preds, targs = get_preds(learn)
    views, _ = tta(learn, VIEWS)
    guess = preds.argmax(1)
    row = {**run, "digest": digest(plan), "epochs": plan["epochs"],
           "accuracy": f"{(guess == targs).double().mean():.4f}",
           "views": f"{(views.argmax(1) == targs).double().mean():.4f}",
           "loss": torch.nn.functional.cross_entropy(preds.float(), targs).item(),
           "seconds": round(seconds, 3), "cpu_seconds": round(cpu, 3), "threads": torch.get_num_threads(),
           "machine": machine_name(default_device()), "commit": commit()}
    return row, guess, targs


def train(name: str, variant: str, seed: int, split: str, place: Path = RECORDS, saved: Path = SAVED,
          images=None) -> dict:
    "Does a run, or the rest of it, and returns its row."
    run, plan, images = who(name, variant, seed, split), changed(name, variant), real_images(images)
    if split == "held":
        images = held_out(images)
    path = saved / f"{digest({**run, 'plan': plan})}.checkpoint"
    path.parent.mkdir(parents=True, exist_ok=True)
    keep, checkpoint = KeepCB(run, place), CheckpointCB(path, every=100, resume=True)
    learn = record_learner(plan, images, seed, [keep, checkpoint])
    learn.fit(plan["epochs"], valid=split == "held")
    learn.cbs = [cb for cb in learn.cbs if cb is not keep and cb is not checkpoint]
    row, guess, targs = result(run, plan, learn, keep.seconds, keep.cpu)
    if split == "all":
        wrong = " ".join(f"{i}:{guess[i]}" for i in (guess != targs).nonzero()[:, 0].tolist())
        add_rows(place / "15_wrong.csv", [{**run, "wrong": wrong}], WHO)
    add_rows(place / "15_runs.csv", [row], WHO)
    path.unlink(missing_ok=True)
    return row


def timed(name: str, variant: str, seed: int, place: Path = RECORDS, images=None) -> dict:
    """A run on all images, on the clock from images in memory to trained weights; its row goes to 15_time.csv.

    A short fit goes before, which nobody times: what is made once in a process is made then.
    """
    run, plan, images = who(name, variant, seed, "all"), changed(name, variant), real_images(images)
    few = Images(*(t[:2*plan["bs"]] for t in images), images.name, images.source)
    record_learner({**plan, "epochs": 1, "grow": []}, few, seed).fit(1, valid=False)
    start, cpu = time.perf_counter(), time.process_time()
    learn = record_learner(plan, images, seed)
    learn.fit(plan["epochs"], valid=False)
    if default_device().type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    row = result(run, plan, learn, seconds, cpu)[0]
    add_rows(place / "15_time.csv", [row], (*WHO, "machine"))
    return row


def race(jobs: Iterable[tuple[str, str]], seeds: Sequence[int], place: Path = RECORDS, images=None) -> None:
    "Times `jobs` with each seed, on all cores, unless they are there; `ValueError` if the machine is not idle."
    if (load := getattr(os, "getloadavg", lambda: [0.])()[0]) > 0.5:            # Windows has none
        raise ValueError(f"the load of this machine is {load:.1f}, and only an idle one is timed: wait, and try again")
    torch.set_num_threads(os.cpu_count() or 1)
    for (name, variant), seed in ((j, s) for j in jobs for s in seeds):
        have = [r for r in read_rows(place / "15_time.csv") if r["machine"] == machine_name(default_device())]
        if done(who(name, variant, seed, "all"), have) is None:
            print(timed(name, variant, seed, place, images), flush=True)


def times(place: Path = RECORDS) -> Table:
    "What has been timed, the quickest first: is the mean of at least three seeds 94% or more?"
    found: dict = {}
    for r in read_rows(place / "15_time.csv"):
        found.setdefault((r["machine"], r["recipe"], r["version"], r["variant"] or "as it is"), []).append(r)
    lines = []
    for k, rows in found.items():
        a, s = (mean(float(r[c]) for r in rows) for c in ("accuracy", "seconds"))
        reached = "too few seeds" if len(rows) < 3 else "yes" if a >= 0.94 else "no"
        lines.append((s, [*k, str(len(rows)), f"{100*a:.2f}", f"{s:.1f}", reached]))
    return Table([("machine", "recipe", "version", "variant", "seeds", "mean %", "seconds", "94%?"),
                  *(line for _, line in sorted(lines))], "<<<<>>><")


def queue(stages: Sequence[str] = ()) -> list[tuple[str, str, int, str]]:
    """All runs there should be, the most useful first; or those of some of the stages, in the order they are given.

    The `try` stages are for choosing, on held-out images: look at what they say before the final runs that follow.
    """
    half = [("half", v, s, "held") for s in range(3) for v in ("", *ABLATIONS)]
    # seed 0 of the wider two was run by recipe 5 when it was at version 3
    ladder = [("half", v, s, "held") for s in range(3) for v in (LADDER if s else LADDER[:1])]
    tries = [("half", v, 0, "held") for v in (
        "bs=128", "net.depth=3 net.skip=true", "smoothing=0.2",
        *(f"opt.name={k} opt.lr={lr}" for k, lr in (("sgd", 0.02), ("sgd", 0.1), ("adamw", 0.001), ("adamw", 0.01))))]
    plan = {"try5": [*tries, ("5", "", 0, "held")], "5": [("5", "", s, "all") for s in range(FINAL["5"])],
            "tricks": half, "ladder": ladder,
            # what version 4 is, and is without CutMix, was run as changes of version 3
            "try20": [("20", v, 0, "held") for v in ('mix={"kind":"mixup","alpha":0.2}', "net.skip=true net.drop=0.1")],
            "20": [("20", "", s, "all") for s in range(FINAL["20"])],
            "50": [("50", "", s, "all") for s in range(FINAL["50"])]}
    if unknown := [s for s in stages if s not in plan]:
        raise ValueError(f"no stage {', '.join(unknown)}, only {', '.join(plan)}")
    return list(dict.fromkeys(job for s in stages or plan for job in plan[s]))


def work(jobs: Iterable[tuple[str, str, int, str]]) -> None:
    "Does the runs that are not there."
    for job in jobs:
        if done(who(*job), read_rows(RECORDS / "15_runs.csv")) is None:
            print(f"{time.strftime('%H:%M')} {job}, process {os.getpid()}", flush=True)
            print(train(*job), flush=True)


def status(place: Path = RECORDS, saved: Path = SAVED) -> Table:
    "What is there of each recipe and variant, and what is missing."
    rows = read_rows(place / "15_runs.csv")
    jobs = [(j, done(who(*j), rows)) for j in queue()]
    lines = [("recipe", "variant", "split", "done", "missing seeds", "mean", "with views")]
    for k in dict.fromkeys((j[0], j[1], j[3]) for j, _ in jobs):
        mine = [(j, r) for j, r in jobs if (j[0], j[1], j[3]) == k]
        have = [r for _, r in mine if r]
        missing = " ".join(str(j[2]) for j, r in mine if not r)
        means = [f"{100*sum(float(r[c]) for r in have)/len(have):.2f}" if have else "" for c in ("accuracy", "views")]
        lines.append((k[0], k[1] or "as it is", k[2], f"{len(have)}/{len(mine)}", missing, *means))
    known = {tuple(str(v) for v in who(*j).values()) for j in queue()}
    others = Counter((r["recipe"], r["version"]) for r in rows if tuple(r[k] for k in WHO) not in known)
    for (name, version), n in sorted(others.items()):
        lines.append((name, f"other runs, version {version}", "", str(n), "", "", ""))
    for path in sorted(saved.glob("*.checkpoint")):
        age = (time.time() - path.stat().st_mtime)/60
        lines.append(("", f"begun: {path.name}", "", f"{age:.0f} min", "", "", ""))
    return Table(lines, "<<<><>>")


def readme(place: Path = RECORDS) -> str:
    "The table of the README: of each recipe, the final runs of its newest version."
    lines = ["| epochs | seeds | mean | best | worst | std | six views | processor time of a run |",
             "|---|---|---|---|---|---|---|---|"]
    rows = [r for r in read_rows(place / "15_runs.csv") if (r["variant"], r["split"]) == ("", "all")]
    for name in FINAL:
        newest = max((int(r["version"]) for r in rows if r["recipe"] == name), default=0)
        have = [r for r in rows if (r["recipe"], int(r["version"])) == (name, newest)]
        a, views, cpu = ([float(r[k]) for r in have] for k in ("accuracy", "views", "cpu_seconds"))
        if not have:
            lines.append(f"| {name} | 0 | | | | | | |")
            continue
        numbers = [mean(a), max(a), min(a), stdev(a) if len(a) > 1 else 0., mean(views)]
        took = dict.fromkeys(f"{c/60:.0f}" for c in (min(cpu), max(cpu)))
        lines.append(f"| {name} | {len(a)} | " + " | ".join(f"{100*v:.2f}%" for v in numbers)
                     + f" | {' to '.join(took)} min |")
    return "\n".join(lines) + "\n"


def processor(machine: str) -> str:
    "A machine's name without the number of its threads."
    return re.sub(r", \d+ threads?$", "", machine)


def verify(name: str | None = None, seed: int | None = None, place: Path = RECORDS, saved: Path = SAVED / "verify",
           images=None) -> bool:
    """Train a recorded final run again, elsewhere, with as many threads: is its accuracy within `TOLERANCE`?

    If not told which, it is the shortest of those that were made on this kind of processor, or on any if there is
    none: another processor rounds in another way, and its run differs from the recorded one as another seed would.
    """
    finals = [r for r in read_rows(place / "15_runs.csv")
              if (r["variant"], r["split"]) == ("", "all") and name in (None, r["recipe"])]
    if not finals:
        raise ValueError(f"no run of {f'recipe {name}' if name else 'a recipe'} is recorded")
    now = {r["recipe"]: recipe(r["recipe"]) for r in finals}
    same = [r for r in finals if r["digest"] == digest(now[r["recipe"]]) and seed in (None, int(r["seed"]))]
    if not same:
        wanted = ", ".join(f"recipe {k}, version {r['version']} ({digest(r)})" for k, r in now.items())
        there = ", ".join(sorted({f"version {r['version']} seed {r['seed']} ({r['digest']}, commit {r['commit']})"
                                  for r in finals}))
        raise ValueError(f"{wanted}, {'any seed' if seed is None else f'seed {seed}'} is not recorded, but {there}: "
                         "check out that commit to repeat one of them")
    here = processor(machine_name(default_device()))
    row = min(same, key=lambda r: (processor(r["machine"]) != here, float(r["cpu_seconds"])))
    before = torch.get_num_threads()
    torch.set_num_threads(int(row["threads"]))
    try:
        twin = train(row["recipe"], "", int(row["seed"]), "all", saved, saved, images)
    finally:
        torch.set_num_threads(before)
    off = float(twin["accuracy"]) - float(row["accuracy"])
    print(f"recipe {row['recipe']}, seed {row['seed']}: {float(row['accuracy']):.2%} recorded on {row['machine']}, "
          f"{float(twin['accuracy']):.2%} now on {twin['machine']}: {off*100:+.2f} points")
    if processor(row["machine"]) != here:
        print("which are two kinds of processor: two seeds would differ as much")
    return abs(off) <= TOLERANCE + 1e-9


def main(argv: list[str] | None = None) -> int:
    "The command; returns its exit status."
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--status", action="store_true")
    p.add_argument("--queue", nargs="*", metavar="STAGE", help="some of try5, 5, tricks, ladder, try20, 20, 50, or all")
    p.add_argument("--verify", action="store_true")
    p.add_argument("--readme", action="store_true", help="put the table into the README, and print it")
    p.add_argument("--run", metavar="NAME", help="5, half, 20, 50 or wide")
    p.add_argument("--epochs", type=int, help="another number of epochs")
    p.add_argument("--time", action="store_true", help="time the candidates for 94%%, or what --run says")
    p.add_argument("--seeds", type=int, nargs="+", help="0, or with --time 0 1 2, if not given")
    p.add_argument("--split", choices=("held", "all"), default="held")
    p.add_argument("--variant", default="", help="one of: " + "; ".join(ABLATIONS))
    p.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the recipe, opt.lr=0.2")
    a = p.parse_args(argv)
    try:
        if a.readme:
            path, table = ROOT / "README.md", readme()
            parts = re.split(r"(?<=<!-- records -->\n).*?(?=<!-- /records -->)", path.read_text("utf-8"), flags=re.S)
            if len(parts) == 2:
                write_file(path, table.join(parts))
            print(table, end="")
            return 0
        if a.verify:
            return int(not verify(a.run, a.seeds[0] if a.seeds else None))
        seeds = a.seeds or ([0, 1, 2] if a.time else [0])
        if a.variant and (a.set or a.epochs):
            raise ValueError("--variant takes no --set and no --epochs")
        variant = a.variant or " ".join([*a.set, *([f"epochs={a.epochs}"] if a.epochs else [])])
        if a.run and a.epochs == recipe(a.run)["epochs"] and not a.set:
            variant = a.variant
        if a.time or a.queue is not None or a.run:
            SAVED.mkdir(parents=True, exist_ok=True)
            with FileLock(SAVED / ".lock", timeout=1):
                if a.time:
                    race([(a.run, variant)] if a.run else RACE, seeds)
                else:
                    work(queue(a.queue) if a.queue is not None else [(a.run, variant, s, a.split) for s in seeds])
        print(times() if a.time else status())
    except Timeout:
        print(f"records.py: another process is at it, {SAVED / '.lock'} is locked", file=sys.stderr)
        return 1
    except ValueError as e:
        print(f"records.py: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
