"""The data layer (chapter 00a) where a notebook can't go.

Bad files by the thousand, servers that misbehave, full disks, many processes at once."""

import errno
import functools
import gzip
import io
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import prod
from pathlib import Path

import pytest
import torch
from small_data import SHAPES, count_as_real, idx, same, sha

import exp.nb00c as data
from exp.nb00a import write_file

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def world(tmp_path, monkeypatch):
    "A tiny `mnist` that counts as the real one, in `tmp_path/data`; an empty cache; no hub; built-in images all black."
    files = count_as_real(monkeypatch)
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    for f, b in files.items():
        (tmp_path / "data" / "mnist" / f"{f}.gz").write_bytes(gzip.compress(b))
    monkeypatch.setattr(
        data,
        "draw_images",
        lambda name, n, seed: (torch.zeros(n, 28, 28, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)),
    )
    for v in ("GROUNDUP_DATA", "HF_DATASETS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(v, raising=False)
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path


def tiny(world) -> data.Images:
    return data._read_set(world / "data" / "mnist", "mnist", "folder", "")


# -- files

GOOD = idx(torch.arange(600).view(6, 10, 10).to(torch.uint8))
BAD = {  # bytes of the file, what the message says
    "empty": (b"", "not an IDX file"),
    "html": (b"<!DOCTYPE html><title>404</title>", "found 3c 21 44 4f"),
    "pickle": (b"\x80\x04\x95\x00", "not an IDX file"),
    "magic": (b"\0\1" + GOOD[2:], "not an IDX file"),
    "dtype": (b"\0\0\x0a" + GOOD[3:], "not an IDX file"),
    "no dimensions": (b"\0\0\x08\0", "not an IDX file"),
    "header cut": (GOOD[:9], "truncated in its header"),
    "body cut": (GOOD[:-1], "truncated: expected 600 bytes after the header, found 599"),
    "too long": (GOOD + b"\0", "longer than its header says"),
    "terabyte": (struct.pack(">BBBBII", 0, 0, 8, 2, 1 << 20, 1 << 20), "promises too much"),
    "gzip cut": (gzip.compress(GOOD)[:-9], "damaged or truncated gzip file"),
    "gzip crc": (gzip.compress(GOOD)[:-8] + bytes(8), "damaged or truncated gzip file"),
    "gzip garbage": (gzip.compress(GOOD) + b"garbage", "damaged or truncated gzip file"),
    "gzip twice": (gzip.compress(GOOD) * 2, "longer than its header says"),
    "gzip of gzip": (gzip.compress(gzip.compress(GOOD)), "not an IDX file"),
    "gzip header only": (b"\x1f\x8b", "damaged or truncated gzip file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file(kind, tmp_path):
    content, message = BAD[kind]
    (tmp_path / "a file.gz").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as e:
        data.read_idx(tmp_path / "a file.gz")
    assert str(tmp_path / "a file.gz") in str(e.value)


def test_good_files(tmp_path):
    for packed in (GOOD, gzip.compress(GOOD), gzip.compress(GOOD) + bytes(512)):  # zeros at the end are padding
        (tmp_path / "f").write_bytes(packed)
        assert data.read_idx(tmp_path / "f").flatten().tolist() == [i % 256 for i in range(600)]
    dtypes = torch.uint8, torch.int8, torch.int16, torch.int32, torch.float32, torch.float64
    for letter, code, dtype in zip("Bbhifd", data._IDX_DTYPES, dtypes, strict=True):
        (tmp_path / "f").write_bytes(struct.pack(f">BBBBII6{letter}", 0, 0, code, 2, 2, 3, 1, 2, 3, 4, 5, 100))
        assert torch.equal(data.read_idx(tmp_path / "f"), torch.tensor([[1, 2, 3], [4, 5, 100]], dtype=dtype))
    (tmp_path / "f").write_bytes(struct.pack(">BBBBII", 0, 0, 8, 2, 0, 3))
    assert data.read_idx(tmp_path / "f").shape == (0, 3)
    with pytest.raises(FileNotFoundError):
        data.read_idx(tmp_path / "none")


def test_every_bit_flip_is_caught():
    "All bits of the header, and 1,000 of the body, by the SHA-256."
    bits = [*range(16 * 8), *random.Random(0).sample(range(16 * 8, len(GOOD) * 8), 1000)]
    for bit in bits:
        b = bytearray(GOOD)
        b[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            data._decode(io.BytesIO(b), "f", (6, 10, 10), sha(GOOD))


def test_gzip_bit_flips_are_caught_or_harmless(tmp_path):
    labels = idx(torch.arange(100).to(torch.uint8) % 3)
    packed, want, harmless = gzip.compress(labels), data._decode(io.BytesIO(labels), "f"), 0
    for bit in range(len(packed) * 8):
        b = bytearray(packed)
        b[bit // 8] ^= 1 << bit % 8
        (tmp_path / "f").write_bytes(b)
        try:
            assert torch.equal(data.read_idx(tmp_path / "f", (100,), sha(labels)), want)
            harmless += 1
        except ValueError:
            pass
    assert harmless < 80  # time stamp, operating system and the like


def test_reading_is_bounded(tmp_path):
    bomb = struct.pack(">BBBBI", 0, 0, 8, 1, 1000) + bytes(300_000_000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bomb, 1))
    del bomb
    (tmp_path / "liar").write_bytes(struct.pack(">BBBBI", 0, 0, 8, 1, 1 << 29) + bytes(1000))
    tracemalloc.start()
    for f, message in (("bomb.gz", "longer than"), ("liar", "truncated")):
        with pytest.raises(ValueError, match=message):
            data.read_idx(tmp_path / f)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


# -- folder and cache


def test_folder(world, monkeypatch, capsys):
    monkeypatch.setenv("GROUNDUP_DATA", str(world / "data"))
    images = data.get_images("mnist")
    assert images.source == "folder" and images.real and same(images, tiny(world))
    assert capsys.readouterr().out == "mnist: 12 + 4 images, real, from the folder in GROUNDUP_DATA\n"
    data.get_images("mnist", quiet=True)
    assert capsys.readouterr().out == ""
    assert data.get_images("fashion_mnist").source == "built-in"
    assert "GROUNDUP_DATA does not hold this set" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'mnist', 'fashion_mnist'"):
        data.get_images("../mnist")


@pytest.mark.parametrize("folder, message", [("none", "there is no folder"), ("data/mnist", "holds no image set")])
def test_wrong_folder(world, monkeypatch, folder, message):
    monkeypatch.setenv("GROUNDUP_DATA", str(world / folder))
    with pytest.raises(FileNotFoundError, match=message) as e:
        data.get_images("mnist")
    assert "Set GROUNDUP_DATA to" in str(e.value)


@pytest.mark.parametrize("kind", ["cut", "altered", "shape", "swapped", "absent"])
@pytest.mark.parametrize("source", ["GROUNDUP_DATA", "GROUNDUP_CACHE"])
def test_damage_is_an_error_and_stays(world, monkeypatch, source, kind):
    "A damaged file is named; nothing is changed, nothing else is used instead. (Absent from the cache: fetched anew.)"
    monkeypatch.setenv(source, str(world / "data"))
    file, other = (world / "data" / "mnist" / f"{p}-labels-idx1-ubyte.gz" for p in ("train", "t10k"))
    raw = gzip.decompress(file.read_bytes())
    bad = {
        "cut": file.read_bytes()[:-4],
        "altered": gzip.compress(raw[:-1] + bytes([raw[-1] ^ 1])),
        "shape": gzip.compress(idx(torch.zeros(11, dtype=torch.uint8))),
        "swapped": other.read_bytes(),
    }
    if kind == "absent":
        file.unlink()
    else:
        file.write_bytes(bad[kind])
    before = {f: f.read_bytes() for f in (world / "data").rglob("*") if f.is_file()}
    if (source, kind) == ("GROUNDUP_CACHE", "absent"):
        assert data.get_images("mnist").source == "built-in"
    else:
        with pytest.raises((ValueError, FileNotFoundError)) as e:
            data.get_images("mnist")
        assert file.name in str(e.value)
        assert ("unset" if source == "GROUNDUP_DATA" else "Delete") in str(e.value)
        assert before == {f: f.read_bytes() for f in (world / "data").rglob("*") if f.is_file()}


def test_cache_that_disappears_midway(world, monkeypatch):
    monkeypatch.setenv("GROUNDUP_CACHE", str(world / "data"))
    check = data._missing

    def check_then_lose(folder):
        missing = check(folder)
        (folder / "t10k-images-idx3-ubyte.gz").unlink(missing_ok=True)
        return missing

    monkeypatch.setattr(data, "_missing", check_then_lose)
    assert data.get_images("mnist").source == "built-in"


# -- the hub


class Hub(BaseHTTPRequestHandler):
    "As much of the Hugging Face hub as `datasets` needs to load one data set of Parquet files from it."

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, body: bytes, status=200, kind="application/json", **headers):
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": len(body), "X-Repo-Commit": "0" * 40} | headers
        for k, v in headers.items():
            self.send_header(k.replace("_", "-"), str(v))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = self.path.split("?")[0]
        files = {f.name: f.read_bytes() for f in self.server.folder.iterdir()}
        entries = [{"type": "file", "path": n, "size": len(b), "oid": sha(b)[:40]} for n, b in files.items()]
        self.server.seen.append(f"{self.command} {path}")
        if self.server.stall and "/api/" not in path and "/resolve/" in path:
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 20))
            self.end_headers()
            self.wfile.write(bytes(1 << 18))
            return time.sleep(30)
        if "/paths-info/" in path or "/tree/" in path:
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            self.answer(json.dumps([e for e in entries if "/tree/" in path or e["path"] in asked]).encode())
        elif path.startswith("/api/datasets/ylecun/mnist"):
            self.answer(
                json.dumps(
                    {
                        "id": "ylecun/mnist",
                        "sha": "0" * 40,
                        "private": False,
                        "gated": False,
                        "tags": [],
                        "siblings": [{"rfilename": n} for n in files],
                    }
                ).encode()
            )
        elif path.startswith("/datasets/ylecun/mnist/resolve/") and path.split("/")[-1] in files:
            body = files[path.split("/")[-1]]
            self.answer(body, kind="application/octet-stream", ETag=f'"{sha(body)[:40]}"')
        else:
            self.answer(b"{}", 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_POST = do_GET


@contextmanager
def stand_in_hub(folder, images, monkeypatch, stall=False):
    "Serves `images` as the hub would; yields the server, whose `seen` lists the requests."
    from datasets import ClassLabel, Dataset, Features, Image, disable_progress_bars
    from PIL import Image as Picture

    disable_progress_bars()
    folder.mkdir()
    kinds = Features({"image": Image(), "label": ClassLabel(10)})
    for split, x, y in (("train", images.x_train, images.y_train), ("test", images.x_valid, images.y_valid)):
        rows = {"image": [Picture.fromarray(p) for p in x.numpy()], "label": y.tolist()}
        Dataset.from_dict(rows, features=kinds).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.folder, server.seen, server.stall, server.daemon_threads = folder, [], stall, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def test_hub(world, monkeypatch, capsys):
    "What comes from a hub is what the IDX files hold; it is cached, and the hub isn't asked again."
    with stand_in_hub(world / "hub", tiny(world), monkeypatch) as hub:
        images = data.get_images("mnist")
        assert images.source == "hub" and same(images, tiny(world)), capsys.readouterr().out
        assert images.y_train.dtype == torch.int64
        asked = len(hub.seen)
        again = data.get_images("mnist")
        assert again.source == "cache" and same(again, images) and len(hub.seen) == asked
    assert sorted(f.name for f in (world / "cache" / "mnist").iterdir()) == sorted(f"{f}.gz" for f in SHAPES)


def test_any_data_set_of_the_hub_by_its_name(world, monkeypatch):
    "In a process of its own: `datasets` asks once where the hub is. The second name is none that this hub knows."
    code = "from exp.nb14a import image_table as f; print(f('ylecun/mnist', (1, 14, 14))); f('a/b')"
    with stand_in_hub(world / "hub", tiny(world), monkeypatch):
        done = subprocess.run([sys.executable, "-c", code], cwd=world, capture_output=True, text=True, timeout=300,
                              env=os.environ | {"PYTHONPATH": str(ROOT)})
    said = "ylecun/mnist: 12 + 4 pictures of 10 classes, 16 of them made 14×14\nImages('ylecun/mnist'"
    assert said in done.stdout, done
    assert "ValueError: a/b is no folder, and no data set that could be had: 404 Client Error." in done.stderr, done


def test_hub_with_other_pixels(world, monkeypatch):
    images = tiny(world)
    images.x_train[0, 0, 0] ^= 1
    with stand_in_hub(world / "hub", images, monkeypatch), pytest.raises(ValueError, match="HF_HUB_OFFLINE=1") as e:
        data.get_images("mnist")
    assert "ylecun/mnist: train-images" in str(e.value)
    assert not (world / "cache" / "mnist").exists()


def test_hub_that_stalls_halfway(world, monkeypatch, capsys):
    monkeypatch.setattr(data, "_watched", functools.partial(data._watched, start=60, stall=2))
    with stand_in_hub(world / "hub", tiny(world), monkeypatch, stall=True):
        assert data.get_images("mnist").source == "built-in"
    assert "hub failed: no progress for 2 s" in capsys.readouterr().out


def trickle(s):
    "Answers one byte a second, for ever."
    while True:
        try:
            c, _ = s.accept()
        except OSError:                                    # the test is over
            return
        with suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100:
                c.send(bytes([byte]))
                time.sleep(1)


@pytest.mark.parametrize("kind", ["closed", "silent", "trickle"])
def test_unreachable_hub(world, monkeypatch, capsys, kind):
    "Costs at most 10 s until the built-in images are used."
    with socket.create_server(("127.0.0.1", 0)) as s:
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{s.getsockname()[1]}")
        if kind == "closed":
            s.close()
        if kind == "trickle":
            threading.Thread(target=trickle, args=(s,), daemon=True).start()
        t = time.monotonic()
        assert data.get_images("mnist").source == "built-in"
        assert time.monotonic() - t < 10
    assert re.fullmatch(r"mnist: 60,000 \+ 10,000 images, BUILT-IN: .* \(hub .*\)\n", capsys.readouterr().out)


@pytest.mark.parametrize("flag", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_flags(world, monkeypatch, flag):
    with stand_in_hub(world / "hub", tiny(world), monkeypatch) as hub:
        monkeypatch.setenv(flag, "True")
        assert data.get_images("mnist").source == "built-in"
        assert hub.seen == []


# -- a cache that can't be written


def fail_write(error):
    "Makes writing temporary files fail with `error`, after they were made."

    def fsync(fd):
        raise OSError(error, os.strerror(error))

    return fsync


@pytest.mark.parametrize("kind", ["file in the way", "read-only", "full disk"])
def test_cache_that_cannot_be_written(world, monkeypatch, capsys, kind):
    "One remark in the line that says what was used; the images are there; no litter."
    if kind == "file in the way":
        (world / "cache").write_text("a file")
    if kind == "full disk":
        monkeypatch.setattr(os, "fsync", fail_write(errno.ENOSPC))
    if kind == "read-only":
        usual = Path.open

        def read_only(path, mode="r", *args, **kwargs):
            if mode == "xb":
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return usual(path, mode, *args, **kwargs)

        monkeypatch.setattr(Path, "open", read_only)
    assert data.get_images("mnist").source == "built-in"
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "not cached: " in out
    with stand_in_hub(world / "hub", tiny(world), monkeypatch):
        images = data.get_images("mnist")
    assert images.source == "hub" and same(images, tiny(world))
    assert capsys.readouterr().out.count("not cached: ") == 1
    left = [f for f in (world / "cache").rglob("*") if f.suffix != ".lock" and f.is_file()]
    assert left == []


# -- many at once

def load(env, sums, n, conn):
    "In a process of its own: where the images come from, and their sum."
    torch.set_num_threads(1)
    os.environ.clear()
    os.environ.update(env)
    data._SHAPES, data._SHA256["mnist"] = SHAPES, sums
    conn.send("ready")
    conn.recv()
    images = data.get_images("mnist", quiet=True) if n == 0 else data.toy_images("mnist", n, 10)
    conn.send((images.source, int(images.x_train.sum())))


def at_once(forks, k, n=0):
    "What `k` processes find that load images at the same moment."
    pipes = [forks.Pipe() for _ in range(k)]
    ps = [forks.Process(target=load, args=(dict(os.environ), data._SHA256["mnist"], n, there), daemon=True)
          for _, there in pipes]
    for p in ps:
        p.start()
    for here, there in pipes:
        there.close()                                      # or the end of a process would not be seen
        assert here.recv() == "ready"
    for here, _ in pipes:
        here.send("go")
    results = [here.recv() if here.poll(100) else pytest.fail("it hangs") for here, _ in pipes]
    for p in ps:
        p.join(100)
    return results


def test_parallel_first_use(forks, world, monkeypatch):
    "Eight processes: one download, one good cache, eight times the same images."
    with stand_in_hub(world / "hub", tiny(world), monkeypatch) as hub:
        results = at_once(forks, 8)
    total = int(tiny(world).x_train.sum())
    assert {found for _, found in results} == {total}
    assert sorted(source for source, _ in results) == ["cache"] * 7 + ["hub"]
    assert sum(s.startswith("GET") and s.endswith("train-00000-of-00001.parquet") for s in hub.seen) == 1
    assert same(data._from_cache("mnist"), tiny(world))
    assert not list((world / "cache").rglob(".groundup-*.tmp"))


@pytest.mark.skipif(sys.platform == "win32", reason="permissions and links as on Unix")
def test_writing_keeps_links_and_permissions_and_sweeps_old_litter_only(tmp_path):
    there, link = tmp_path / "there", tmp_path / "in" / "link"
    write_file(there, b"old")
    before = os.umask(0)
    os.umask(before)
    assert there.stat().st_mode & 0o777 == 0o666 & ~before          # as any new file, not for its owner alone
    there.chmod(0o640)
    link.parent.mkdir()
    link.symlink_to(there)
    young, old, foreign = (tmp_path / name for name in (".groundup-1.tmp", ".groundup-2.tmp", ".tmp-3"))
    for f in (young, old, foreign):
        f.touch()
    os.utime(old, (0, 0))
    os.utime(foreign, (0, 0))
    write_file(link, b"new")
    assert link.is_symlink() and there.read_bytes() == b"new" and there.stat().st_mode & 0o777 == 0o640
    assert {f.name for f in tmp_path.iterdir()} == {"there", "in", young.name, foreign.name}


def test_built_in_images_are_the_same_everywhere(forks, world):
    "Three processes draw or load 10,000 digits: the same sum of pixels, one file in the cache, also drawn anew."
    first = at_once(forks, 3, n=9_990)
    archives = list((world / "cache").glob("built-in-*.gz"))
    assert len(archives) == 1
    good = archives[0].read_bytes()
    for damaged in (good[:-100], good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]):
        archives[0].write_bytes(damaged)
        with pytest.raises(ValueError):
            data.read_idx(archives[0])
    assert at_once(forks, 1, n=9_990)[0] == first[0] == first[1] == first[2]
    assert archives[0].read_bytes() == good


def test_a_file_of_drawn_images_is_bounded(world, monkeypatch):
    "One that holds more than its name says is not read: the images are drawn again."
    draw = data.draw_images
    for extra in (0, 1):
        (path,) = (world / "cache").glob("built-in-*.gz") if extra else (None,)
        if extra:
            path.write_bytes(gzip.compress(data._idx_bytes(torch.ones(13, 785, dtype=torch.uint8))))
        x, y = data._drawn("mnist", 12, 3, print)
        assert not x.any() and not y.any() and x.shape == (12, 28, 28)
    monkeypatch.setattr(data, "draw_images", lambda *args: pytest.fail("it is there"))
    assert same(data._drawn("mnist", 12, 3, print), draw("mnist", 12, 3))


# -- the module


def test_import_is_light():
    code = "import sys, exp.nb00c; print(sorted({'matplotlib', 'datasets', 'PIL', 'platformdirs'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out == "[]\n"


def test_no_pickle():
    source = Path(data.__file__).read_text(encoding="utf-8")
    assert not re.search(r"pickle|torch\.load|np\.load|\beval\(|\bexec\(", source)


def test_images():
    x = torch.zeros(5, 28, 28, dtype=torch.uint8)
    images = data.Images(x[:3], torch.arange(3), x[3:], torch.arange(2), "mnist", "hub")
    assert [t.shape[0] for t in images] == [3, 3, 2, 2] and images.real and not data.Images(*images).real
    assert repr(images) == "Images('mnist', source='hub', train (3, 28, 28), valid (2, 28, 28), torch.uint8)"
    assert prod(images[0].shape) == 3 * 784 and len(images) == 4


@pytest.mark.parametrize("kwargs, want", [
    (dict(), ("0", "1", "2")), (dict(name="mine"), ("0", "1", "2")), (dict(names=["a", "b", "c"]), ("a", "b", "c")),
    (dict(name="mnist"), tuple("0123456789")), (dict(name="mnist", names="xyz"), ("x", "y", "z")),
    (dict(names=torch.arange(3).numpy()), ("0", "1", "2"))])
def test_own_images_have_names_of_classes(kwargs, want):
    x = torch.zeros(5, 3, 9, 7, dtype=torch.uint8)
    images = data.Images(x[:3], torch.tensor([0, 2, 1]), x[3:], torch.arange(2), **kwargs)
    assert images.names == want and images.real is None


def test_names_of_what_has_no_classes():
    x = torch.zeros(2, 4, 4)
    assert data.Images(x, torch.tensor([1e9, float("nan")]), x, torch.rand(2)).names == ()
    assert data.Images(x[:0], torch.arange(0), x[:0], torch.arange(0)).names == ()
