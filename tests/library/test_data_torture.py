"""The data layer (00a) under attack: flipped bits, files cut short, bombs, kills, a cache that goes away.

Builds on tests/test_data.py, which has the single cases; here they come by the thousand, and on the real files."""
import gzip
import io
import os
import random
import shutil
import struct
import sys
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch
from figures import LONG, figure, times
from small_data import SHAPES, count_as_real, idx, same, sha, small_files

import exp.nb00c as data

pytestmark = pytest.mark.torture

FILES = list(SHAPES)
REAL = os.environ.get("GROUNDUP_DATA")
needs_real = pytest.mark.skipif(not (REAL and Path(REAL, "mnist").is_dir()), reason="needs GROUNDUP_DATA")


def flipped(content, bit):
    b = bytearray(content)
    b[bit//8] ^= 1 << bit % 8
    return b


@pytest.fixture
def world(tmp_path, monkeypatch):
    "A tiny `mnist` that counts as the real one, in `tmp_path/data/mnist`; an empty cache; no hub."
    for f, b in count_as_real(monkeypatch).items():
        path = tmp_path / "data" / "mnist" / f"{f}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b, mtime=0))
    monkeypatch.setenv("GROUNDUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("GROUNDUP_DATA", raising=False)
    return tmp_path


def tiny(world):
    return data._read_set(world / "data" / "mnist", "mnist", "folder", "")


# -- flipped bits

def test_the_checksum_alone_catches_every_bit_of_the_header():
    "Without being told the shape: what the header then says fits the file, or the checksum does not."
    files, by_checksum = small_files(), 0
    for f, b in files.items():
        for bit in range(8*(4 + 4*len(SHAPES[f]))):
            with pytest.raises(ValueError) as e:
                data._decode(io.BytesIO(flipped(b, bit)), f, None, sha(b))
            by_checksum += "altered" in str(e.value)
    assert by_checksum >= 4                                # another type of the same size, at least
    for f, b in files.items():                             # another shape with as many numbers
        other = b[:4] + struct.pack(f">{len(SHAPES[f])}I", *SHAPES[f][::-1]) + b[4 + 4*len(SHAPES[f]):]
        if other != b:
            with pytest.raises(ValueError, match="altered: SHA-256"):
                data._decode(io.BytesIO(other), f, None, sha(b))


@needs_real
@pytest.mark.parametrize("name", data._SHA256)
def test_flipped_bits_in_the_real_files(name):
    "All of each header, and more than 1,000 of the bodies."
    header = body = 0
    for (f, shape), want in zip(data._SHAPES.items(), data._SHA256[name], strict=True):
        content = gzip.decompress(Path(REAL, name, f"{f}.gz").read_bytes())
        assert sha(content) == want
        start = 4 + 4*len(shape)
        for bit in range(8*start):                         # with the shape they are caught before the body is read
            with pytest.raises(ValueError):
                data._decode(io.BytesIO(flipped(content[:start], bit)), f, shape, want)
            header += 1
        n = {0: times(1, 15), 1: times(50, 500), 2: times(2, 60), 3: times(50, 500)}[FILES.index(f)]
        for bit in random.Random(f).sample(range(8*start, 8*len(content)), n):
            with pytest.raises(ValueError, match="altered: SHA-256"):
                data._decode(io.BytesIO(flipped(content, bit)), f, shape, want)
            body += 1
    figure(f"bits flipped in the real files of {name}", header=header, body=body, not_noticed=0)


@needs_real
def test_flipped_bits_in_real_gzip_files(tmp_path):
    "Everywhere in the file as it was downloaded: an error, or exactly the same labels."
    f, want = "t10k-labels-idx1-ubyte", data._SHA256["mnist"][3]
    packed = Path(REAL, "mnist", f"{f}.gz").read_bytes()
    good, rng, harmless = data.read_idx(Path(REAL, "mnist", f"{f}.gz")), random.Random(42), 0
    ends = [*range(30*8), *range(8*(len(packed) - 8), 8*len(packed))]
    bits = {*(ends if LONG else ends[::5]), *rng.sample(range(8*len(packed)), times(100, 1500))}
    for bit in bits:
        (tmp_path / "f.gz").write_bytes(flipped(packed, bit))
        try:
            assert torch.equal(data.read_idx(tmp_path / "f.gz", (10_000,), want), good), f"bit {bit}"
            harmless += 1
        except ValueError as e:
            assert "f.gz" in str(e), f"bit {bit}"
    assert harmless < 0.2*len(bits)                        # a date, a name, how it was compressed
    figure("bits flipped in a real gzip file", flips=len(bits), without_effect=harmless, wrong_labels=0)


@pytest.mark.parametrize("source", ["GROUNDUP_DATA", "GROUNDUP_CACHE"])
def test_flipped_bits_through_get_images(world, monkeypatch, source):
    "One bit in any of the four files: it is named and stays as it is, or the images are right."
    monkeypatch.setenv(source, str(world / "data"))
    want, rng, caught, n = tiny(world), random.Random(42), 0, times(100, 1500)
    for _ in range(n):
        path = world / "data" / "mnist" / f"{rng.choice(FILES)}.gz"
        packed = path.read_bytes()
        damaged = flipped(packed, bit := rng.randrange(8*len(packed)))
        path.write_bytes(damaged)
        try:
            assert same(data.get_images("mnist", quiet=True), want), f"{path.name}, bit {bit}"
        except ValueError as e:
            assert path.name in str(e) and path.read_bytes() == damaged, f"{path.name}, bit {bit}"
            caught += 1
        path.write_bytes(packed)
    assert caught > 0.7*n
    figure(f"bits flipped in files of {source}", flips=n, caught=caught, wrong_images=0)


# -- cut short, and wrong altogether

def test_every_length_of_a_download_that_broke_off(world, monkeypatch):
    "Plain or gzipped, cut at each byte, or only the last part of it there."
    for f, b in list(small_files().items())[:: 1 if LONG else 3]:
        packed, path, want = gzip.compress(b, mtime=0), world / "x", sha(b)
        for content in (b, packed):
            step = 1 if LONG or len(content) < 200 else 97
            for n in {*range(0, len(content), step), len(content) - 1, len(content) - 8}:
                path.write_bytes(content[:n])
                with pytest.raises(ValueError):
                    data.read_idx(path, SHAPES[f], want)
                hole = bytes(n) + content[n:]
                if hole == content:                        # there are zeros
                    continue
                path.write_bytes(hole)
                with pytest.raises(ValueError):
                    data.read_idx(path, SHAPES[f], want)


def strange(b, shape):
    "What could be in place of a file, by name."
    t = torch.frombuffer(bytearray(b[4 + 4*len(shape):]), dtype=torch.uint8).view(shape)
    yield "transposed", idx(t.movedim(0, -1).contiguous()) if t.ndim > 1 else idx(t[:, None])
    yield "flat", idx(t.flatten(1)) if t.ndim > 1 else idx(t[None])
    yield "a channel more", idx(t[:, None].contiguous())
    yield "an item less", idx(t[:-1].contiguous())
    yield "an item more", idx(torch.cat([t, t[:1]]))
    yield "empty", idx(t[:0])
    yield "brighter", idx(t ^ 1)
    for code in 0x09, 0x0B, 0x0C, 0x0D, 0x0E, 0x00, 0x07, 0x0A, 0xFF:
        yield f"type {code:#x}", b[:2] + bytes([code]) + b[3:]
    for magic in b"\1\0", b"\0\1", b"\x1f\x8b", b"PK", b"\x80\x04":
        yield f"begins with {magic}", magic + b[2:]
    yield "dimensions 255", b[:3] + b"\xff" + b[4:]
    yield "little-endian", struct.pack(f"<{len(shape) + 1}I", 0x800 + len(shape), *shape) + b[4 + 4*len(shape):]
    yield "a page", b"<!DOCTYPE html><title>Not found</title>"*20
    yield "gzip in gzip", gzip.compress(b)


def test_wrong_files(world, monkeypatch):
    "Each of the four replaced by something else, or by one of the others."
    monkeypatch.setenv("GROUNDUP_DATA", str(world / "data"))
    files, tried = small_files(), 0
    for f, b in files.items():
        path = world / "data" / "mnist" / f"{f}.gz"
        for kind, content in [*strange(b, SHAPES[f]), *((g, c) for g, c in files.items() if g != f)]:
            for packed in (gzip.compress(content), content)[:1 if kind == "gzip in gzip" else 2]:
                path.write_bytes(packed)
                with pytest.raises(ValueError, match=f"{f}.gz.*Get mnist again"):
                    pytest.fail(f"{f}: {kind} was taken for it: {data.get_images('mnist', quiet=True)}")
                tried += 1
        path.write_bytes(gzip.compress(b))
    assert same(data.get_images("mnist", quiet=True), tiny(world))
    figure("wrong files in place of the right ones", files=tried, taken=0)


# -- bombs

def bomb(path, head: bytes, mb: int):
    "A gzip file: `head`, then `mb` megabytes of zeros. It has a thousandth of that."
    packer, zeros = zlib.compressobj(9, zlib.DEFLATED, 31), bytes(1 << 20)
    with open(path, "wb") as f:
        f.write(packer.compress(head))
        for _ in range(mb):
            f.write(packer.compress(zeros))
        f.write(packer.flush())


def peak_of(f) -> float:
    "Megabytes that Python allocated at most while it ran."
    tracemalloc.start()
    try:
        f()
        return tracemalloc.get_traced_memory()[1]/2**20
    finally:
        tracemalloc.stop()


def test_gzip_bombs(tmp_path):
    "Reading takes the memory of what was to be there, however much there is, or is promised."
    mb, promised, path = times(100, 4000), 10, tmp_path / "bomb.gz"
    shape = (promised << 20,)
    peaks = {}

    def reading(match, *args, **kwargs):
        def f():
            with pytest.raises(ValueError, match=match):
                data.read_idx(path, *args, **kwargs)
        return f
    bomb(path, struct.pack(">BBBBI", 0, 0, 8, 1, *shape), mb)
    size = path.stat().st_size/2**20
    peaks["of the right shape"] = peak_of(reading("longer than its header says", shape))
    peaks["of another shape"] = peak_of(reading("wrong shape", (5,)))
    bomb(path, struct.pack(">BBBBI", 0, 0, 8, 1, 1 << 31), mb)
    peaks["a header that promises 2 GB"] = peak_of(reading("promises too much"))
    bomb(path, struct.pack(">BBBB255I", 0, 0, 14, 255, *[1 << 30]*255), 5)
    peaks["255 dimensions"] = peak_of(reading("promises too much"))
    bomb(path, b"", mb)
    peaks["no header"] = peak_of(reading("not an IDX file"))
    path.write_bytes(gzip.compress(b"")*times(2000, 100_000) + gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 0)))
    peaks["empty members"] = peak_of(lambda: data.read_idx(path))
    path.write_bytes(b"\x1f\x8b\x08\x08" + bytes(6) + b"n"*times(100_000, 5_000_000))         # a name without an end
    peaks["a long name"] = peak_of(reading("damaged or truncated"))
    peak = peaks.pop("of the right shape")
    assert peak < 1.5*promised + 3 and max(peaks.values()) < 12, (peak, peaks)
    figure("gzip bombs", unpacked_MB=mb, packed_MB=round(size, 1), promised_MB=promised,
           peak_MB=round(peak, 1), peak_of_others_MB=round(max(peaks.values()), 1))


def test_a_bomb_in_the_cache_of_built_in_images(world, monkeypatch):
    "A file that unpacks to more than it should, or says so: the images are drawn anew."
    monkeypatch.setenv("GROUNDUP_CACHE", str(world / "cache"))
    data._drawn("mnist", 12, 1, print)
    (path,) = (world / "cache").glob("built-in-*.gz")
    for rows in (12, 1 << 20):
        bomb(path, struct.pack(">BBBBII", 0, 0, 8, 2, rows, 785), times(30, 1000))
        assert peak_of(lambda: data._drawn("mnist", 12, 1, print)) < 10
        assert data.read_idx(path, (12, 785)).shape == (12, 785)


# -- many processes, some of them killed

def first_use(world, ready, go, out, i):
    "In a process of its own: `get_images`, where downloading is to copy, and to write a line about it."
    torch.set_num_threads(1)
    files = small_files()
    data._SHAPES, data._SHA256["mnist"] = SHAPES, tuple(map(sha, files.values()))
    os.environ |= {"GROUNDUP_CACHE": str(world / "cache"), "HF_HUB_OFFLINE": "0"}
    os.environ.pop("GROUNDUP_DATA", None)

    def fetch(name, work):
        with open(world / "downloads", "a") as f:
            f.write("x")
    data._download, data._unpack_hub = fetch, lambda name, work: dict(files)
    ready.send_bytes(b"!")
    go.poll(None)                                          # no lock that somebody could be killed with
    images = data.get_images("mnist", quiet=True)
    out[i] = int(images.x_train.sum()) if images.source in ("hub", "cache") else -1


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and processes that fork")
def test_first_use_by_eight_some_of_them_killed(forks, world):
    "Who is left has the right images, and the cache is good, or good after the next use; nobody waits for the dead."
    want, kills, litter, rounds = int(tiny(world).x_train.sum()), 0, 0, times(2, 30)
    for seed in range(rounds):
        rng = random.Random(seed)
        for f in "cache", "downloads":
            shutil.rmtree(world / f) if (world / f).is_dir() else (world / f).unlink(missing_ok=True)
        (heard, ready), (go, start), out = forks.Pipe(False), forks.Pipe(False), forks.Array("q", 8, lock=False)
        ps = [forks.Process(target=first_use, args=(world, ready, go, out, i), daemon=True) for i in range(8)]
        for p in ps:
            p.start()
        for _ in ps:
            assert heard.poll(300) and heard.recv_bytes() == b"!"
        start.send_bytes(b"!")                             # which nobody reads, so all can see it
        victims = rng.sample(range(8), rng.randint(1, 6)) if seed % 2 else []
        for v in victims:
            time.sleep(rng.random()*0.01)                  # the random moment
            ps[v].kill()
        for p in ps:
            p.join(300)
        assert not any(p.is_alive() for p in ps), f"seed {seed}: somebody waits for the dead"
        kills += len(victims)
        left = [out[i] for i in range(8) if i not in victims]
        assert left == [want]*len(left), f"seed {seed}"
        assert same(data._from_cache("mnist"), tiny(world)), f"seed {seed}"
        if not victims:
            assert (world / "downloads").read_text() == "x", f"seed {seed}"
        litter += len(list((world / "cache").rglob(".groundup-*.tmp")))
    figure("first use by 8 processes", rounds=rounds, kills=kills, bad_caches=0, temporary_files_left=litter)


# -- a cache folder that goes away

class Saboteur:
    "Removes `folder` right before the `at`th time that something is opened, made, renamed or removed in it."
    hooked, now = False, None

    def __init__(self, folder, at):
        self.folder, self.at, self.n = str(folder), at, 0
        if not Saboteur.hooked:                            # an audit hook stays for good
            sys.addaudithook(lambda event, args: Saboteur.now and Saboteur.now.hear(event, args))
            Saboteur.hooked = True

    def __enter__(self):
        Saboteur.now = self
        return self

    def __exit__(self, *exc):
        Saboteur.now = None

    def hear(self, event, args):
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.listdir") and self.folder in str(args[0]):
            self.n += 1
            if self.n == self.at:
                Saboteur.now = None
                shutil.rmtree(self.folder, ignore_errors=True)
                Saboteur.now = self


@pytest.mark.parametrize("filled", [False, True], ids=["empty", "filled"])
@pytest.mark.parametrize("hub", [False, True], ids=["no hub", "hub"])
def test_the_cache_disappears_at_any_moment(world, monkeypatch, hub, filled):
    "Before each single access to it: the images are right all the same, and next time, too."
    want, toy = tiny(world), (torch.ones(10_000, 28, 28, dtype=torch.uint8), torch.ones(10_000, dtype=torch.int64))
    files = small_files()

    def fetch(name, work):
        if not hub:
            raise OSError("not there")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(data, "_download", fetch)
    monkeypatch.setattr(data, "_unpack_hub", lambda name, work: dict(files))
    monkeypatch.setattr(data, "draw_images", lambda name, n, seed: (toy[0][:n], toy[1][:n]))
    if not hub:
        monkeypatch.setattr(data.toy_images, "__defaults__", ("mnist", 9_996, 4, 42, print))
    at = moments = 0
    while True:
        at += 1
        shutil.rmtree(world / "cache", ignore_errors=True)
        if filled and hub:
            shutil.copytree(world / "data", world / "cache")
        elif filled:
            data.toy_images("mnist", note=lambda s: None)
        with Saboteur(world / "cache", at) as saboteur:
            images = data.get_images("mnist", quiet=True)
        if hub:
            assert images.source in ("hub", "cache") and same(images, want), f"moment {at}"
        else:
            assert images.source == "built-in" and bool((images.x_train == 1).all()), f"moment {at}"
        again = data.get_images("mnist", quiet=True)
        assert same(again, images), f"moment {at}"
        assert not list((world / "cache").rglob(".groundup-*.tmp")), f"moment {at}"
        if saboteur.n < at:
            break
        moments += 1
    assert moments >= 1
    figure(f"cache removed, {'filled' if filled else 'empty'}, {'hub' if hub else 'no hub'}", moments=moments, failed=0)
