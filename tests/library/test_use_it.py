"""The programs of docs/use_it.md, as they stand there, on small data made here, each in a process of its own."""
import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, STRICT
from PIL import Image, ImageDraw

PAGE = (ROOT / "docs" / "use_it.md").read_text(encoding="utf-8")
PROGRAMS = {m[1]: m[2] for m in re.finditer(r"^## ([^\n]+)\n(?:(?!^## ).)*?```python\n(.*?)```", PAGE, re.M | re.S)}


def picture(kind: str, seed: int) -> Image.Image:
    "A ring or a cross of any colour on white, of any size."
    g = torch.Generator().manual_seed(seed)
    size, ink = int(torch.randint(50, 90, (), generator=g)), tuple(torch.randint(0, 180, (3,), generator=g).tolist())
    pen = ImageDraw.Draw(im := Image.new("RGB", (size, size), "white"))
    if kind == "ring":
        pen.ellipse((8, 8, size - 8, size - 8), outline=ink, width=6)
    else:
        pen.line((8, 8, size - 8, size - 8), ink, 6), pen.line((8, size - 8, size - 8, 8), ink, 6)
    return im


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    "What the programs read: pictures, a table, texts."
    root = tmp_path_factory.mktemp("use_it")
    for kind in ("cross", "ring"):
        (root / "pictures" / kind).mkdir(parents=True)
        for i in range(60):
            picture(kind, i + 100*(kind == "ring")).save(root / "pictures" / kind / f"{i}.jpg")
    (root / "new").mkdir()
    picture("ring", 1000).save(root / "new" / "a.png")
    picture("cross", 1001).save(root / "new" / "b.png")
    g = torch.Generator().manual_seed(0)
    x = torch.rand(300, 3, generator=g)
    with open(root / "houses.csv", "w", newline="", encoding="utf-8") as f:
        rows = csv.writer(f)
        rows.writerow(["rooms", "age", "distance", "price"])
        rows.writerows([*(10*r).tolist(), float(100*r[0] - 30*r[1]*r[2])] for r in x)
    words = {"good": "fine splendid lovely great", "bad": "dull poor boring awful"}
    filler = "the film was a story with people and music in it".split()
    with open(root / "reviews.tsv", "w", newline="", encoding="utf-8") as f:
        for i in range(300):
            label = "good" if torch.rand((), generator=g) < 0.5 else "bad"
            own = words[label].split()[i % 4]
            f.write(f"{label}\t{' '.join(filler[k] for k in torch.randint(0, 11, (7,), generator=g))} {own}\n")
    return root


def start(folder: Path, name: str, **kwargs) -> subprocess.Popen:
    script = folder / f"{re.sub('[^a-z]', '_', name.lower())}.py"
    script.write_text(PROGRAMS[name], encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "GROUNDUP_DEVICE": "cpu"}
    return subprocess.Popen([sys.executable, *STRICT, script.name], cwd=folder, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)


def run(folder: Path, name: str) -> str:
    process = start(folder, name)
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out
    return out


def test_there_are_seven_and_they_are_short():
    assert len(PROGRAMS) == 7
    assert max(len(code.strip().splitlines()) for code in PROGRAMS.values()) <= 30
    assert max(len(line) for code in PROGRAMS.values() for line in code.splitlines()) <= 120


def test_pictures_in_folders_and_then_files(folder):
    out = run(folder, "Pictures in folders")
    assert "96 + 24 pictures of 2 classes" in out
    assert min(int(m) for m in re.findall(r"^\w+ +\d+ +(\d+)\.\d%", out, re.M)) >= 70, out
    said = run(folder, "What is on these files?").splitlines()
    assert len(said) == 2
    assert "a.png: ring (" in said[0] and "b.png: cross (" in said[1]


def test_a_table(folder):
    assert float(re.search(r"is left: ([\d.]+)", run(folder, "A table"))[1]) < 0.1


def test_text(folder):
    out = run(folder, "Text")
    assert float(out.splitlines()[10].split()[4]) > 0.9, out


def test_an_autoencoder(folder):
    made, mean = map(float, re.search(r"squared error ([\d.]+), of the mean picture ([\d.]+)",
                                      run(folder, "An autoencoder")).groups())
    assert made < mean/2


def test_two_inputs(folder):
    said = run(folder, "Two inputs")
    guesses = json.loads(re.search(r"a half: (\[.*\])", said)[1])
    assert abs(sum(guesses)/len(guesses) - 3.5) < 1.5, said


def test_going_on_after_a_kill(folder):
    name = "Going on after a kill"
    process, file = start(folder, name), folder / "run.pt"
    end = time.monotonic() + 200
    while not file.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    said = process.communicate()[0]
    assert file.exists(), said
    out = run(folder, name)
    assert re.search(r"went on from epoch \d, batch \d", out) and (folder / "clothes.pt").exists()
    log = (folder / "log.csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[0] for line in log] == ["epoch", "0", "1", "2"]
