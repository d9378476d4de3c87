# INTERIM
__all__ = ['Images', 'class_names', 'get_images', 'read_idx', 'toy_images']
import gzip
import hashlib
import inspect
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


_CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion_mnist": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
                      "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")}


def class_names(name: str = "mnist") -> tuple[str, ...]:
    """The ten class names of image set `name`, in label order. An unknown set is a `ValueError` listing the known ones."""
    if name not in _CLASSES:
        raise ValueError(f"unknown image set {name!r}: the known ones are {', '.join(map(repr, _CLASSES))}")
    return _CLASSES[name]


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """An image set. Unpacks into four tensors; `name` and `source` say what it is and where it came from.

    `x_*` are `(n, 28, 28)` `uint8`, `y_*` `(n,)` `int64`; chapters may hold scaled or flattened versions in one too."""
    x_train: Tensor
    y_train: Tensor
    x_valid: Tensor
    y_valid: Tensor
    name: str = ""
    source: str = "built-in"   # "folder", "cache", "hub" or "built-in"

    @property
    def real(self) -> bool:
        "False for the generated images."
        return self.source != "built-in"

    def __iter__(self): return iter((self.x_train, self.y_train, self.x_valid, self.y_valid))
    def __len__(self) -> int: return 4
    def __getitem__(self, i): return tuple(self)[i]

    def __repr__(self) -> str:
        t, v = tuple(self.x_train.shape), tuple(self.x_valid.shape)
        return f"Images({self.name!r}, source={self.source!r}, train {t}, valid {v}, {self.x_train.dtype})"


_IDX_DTYPES = {0x08: torch.uint8, 0x09: torch.int8, 0x0B: torch.int16,
               0x0C: torch.int32, 0x0D: torch.float32, 0x0E: torch.float64}


def _idx_header(f, path) -> tuple[bytes, torch.dtype, tuple[int, ...]]:
    "Header bytes, dtype and dims read from the start of the open IDX file `f`; `ValueError` naming `path` if it is none."
    magic = f.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES or magic[3] == 0:
        raise ValueError(f"{path}: not an IDX file: it should start with 00 00, a type (08 09 0b 0c 0d 0e) and a "
                         f"number of dimensions (1 or more), found {magic.hex(' ') or 'nothing'}")
    ndim = magic[3]
    dims = f.read(4 * ndim)
    if len(dims) < 4 * ndim:
        raise ValueError(f"{path}: truncated: {ndim} dimensions need {4 * ndim} bytes, {len(dims)} are there")
    return magic + dims, _IDX_DTYPES[magic[2]], struct.unpack(f">{ndim}I", dims)


def _read_at_most(f, n: int) -> bytearray:
    "Up to `n` bytes of `f`, a megabyte at a time: memory grows with what is there, not with what a header claims."
    buf = bytearray()
    while len(buf) < n and (chunk := f.read(min(1 << 20, n - len(buf)))): buf += chunk
    return buf


def _from_big_endian(buf: bytearray, dtype: torch.dtype, dims: tuple[int, ...]) -> Tensor:
    "The tensor of shape `dims` in the big-endian bytes `buf`."
    if not buf: return torch.empty(dims, dtype=dtype)
    data = torch.frombuffer(buf, dtype=torch.uint8)
    if dtype.itemsize > 1 and sys.byteorder == "little": data = data.view(-1, dtype.itemsize).flip(1).flatten()
    return data.view(dtype).view(dims)


def _check(ok: bool, path, what: str, expected, found):
    if not ok: raise ValueError(f"{path}: {what}: expected {expected}, found {found}")


def read_idx(path,
             shape: tuple[int, ...] | None = None,   # dims the file must have
             sha256: str | None = None,              # checksum of its decompressed bytes
             max_bytes: int = 1 << 30) -> Tensor:    # refuse headers that promise more
    """The tensor in an IDX file, gzipped or not, of any of the format's six dtypes.

    Never reads more than one byte past what the header promises. `ValueError` naming the file, what was expected
    and what was found if it is truncated, altered, too long or not IDX; `OSError` if it can't be opened."""
    with open(path, "rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            f = gzip.GzipFile(fileobj=raw) if zipped else raw
            header, dtype, dims = _idx_header(f, path)
            _check(shape is None or dims == tuple(shape), path, "wrong shape", shape, dims)
            n = dtype.itemsize
            for d in dims: n *= d
            _check(n <= max_bytes, path, "header promises too much", f"at most {max_bytes:,} bytes", f"{n:,}")
            data = _read_at_most(f, n + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as e:
            raise ValueError(f"{path}: damaged or truncated gzip file: {e}") from None
    _check(len(data) >= n, path, "truncated", f"{n:,} bytes after the header", f"{len(data):,}")
    _check(len(data) <= n, path, "longer than its header says", f"{n:,} bytes after the header", "more")
    if sha256:
        h = hashlib.sha256(header)
        h.update(data)
        _check(h.hexdigest() == sha256, path, "altered (SHA-256 of the decompressed file)", sha256, h.hexdigest())
    return _from_big_endian(data, dtype, dims)


def _idx_bytes(t: Tensor) -> bytes:
    "`t` (uint8) as the bytes of an IDX file."
    return struct.pack(f">BBBB{t.ndim}I", 0, 0, 0x08, t.ndim, *t.shape) + t.contiguous().numpy().tobytes()


def _write_atomic(path: Path, data: bytes):
    "Writes `data` to a temporary file beside `path`, then renames: `path` is the old file or the whole new one."
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, tmp = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
    except BaseException:
        Path(tmp).unlink(missing_ok=True)
        raise


_SHAPES = {"train-images-idx3-ubyte": (60_000, 28, 28), "train-labels-idx1-ubyte": (60_000,),
           "t10k-images-idx3-ubyte": (10_000, 28, 28), "t10k-labels-idx1-ubyte": (10_000,)}
_SHA256 = {   # of the decompressed files, in the order of _SHAPES
    "mnist": ("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
              "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
              "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
              "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    "fashion_mnist": ("c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                      "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                      "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                      "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34")}


def _read_set(folder: Path, name: str, source: str, remedy: str) -> Images:
    "The four files of set `name` in `folder`, each checked; a bad one is a `ValueError` ending with `remedy`."
    try: xt, yt, xv, yv = (read_idx(folder / f"{f}.gz", shape, sha)
                           for (f, shape), sha in zip(_SHAPES.items(), _SHA256[name]))
    except ValueError as e: raise ValueError(f"{e}. {remedy}") from None
    return Images(xt, yt.long(), xv, yv.long(), name, source)


def _missing(folder: Path) -> list[str]:
    "Which of the four files of an image set are not in `folder`."
    return [f"{f}.gz" for f in _SHAPES if not (folder / f"{f}.gz").is_file()]


def _from_folder(name: str, note) -> Images | None:
    "Source 1, the folder GROUNDUP_DATA names. None if there is none, or if it holds only another set."
    if not (given := os.environ.get("GROUNDUP_DATA")): return None
    root = Path(given).expanduser()
    ways_out = "Set GROUNDUP_DATA to the folder that holds mnist/ and fashion_mnist/, or unset it."
    if not root.is_dir(): raise FileNotFoundError(f"GROUNDUP_DATA: there is no folder {root}. {ways_out}")
    missing = _missing(root / name)
    if not missing:
        return _read_set(root / name, name, "folder", f"Get {name} again, or unset GROUNDUP_DATA to look elsewhere.")
    if len(missing) < 4: raise FileNotFoundError(f"{root / name} lacks {', '.join(missing)}. {ways_out}")
    if all(len(_missing(root / n)) == 4 for n in _SHA256):
        raise FileNotFoundError(f"GROUNDUP_DATA: {root} holds no image set. {ways_out}")
    return note(f"{name}: GROUNDUP_DATA does not hold this set, looking further")


def _cache_folder() -> Path:
    "The user's cache folder for groundup; GROUNDUP_CACHE overrides."
    from platformdirs import user_cache_dir
    return Path(os.environ.get("GROUNDUP_CACHE") or user_cache_dir("groundup")).expanduser()


def _from_cache(name: str) -> Images | None:
    "Source 2, the user's cache. None if the set is not (or no longer) there, whole."
    folder = _cache_folder() / name
    try: return None if _missing(folder) else _read_set(folder, name, "cache", f"Delete {folder}, and it is fetched anew.")
    except FileNotFoundError: return None


@contextmanager
def _alone(what: str, wait: float = 120):
    "Lets one process at a time do `what`; goes on without a lock where none can be had within `wait` seconds."
    from filelock import FileLock, Timeout
    lock = None
    try:
        _cache_folder().mkdir(parents=True, exist_ok=True)
        lock = FileLock(_cache_folder() / f".{what}.lock")
        lock.acquire(timeout=wait)
    except (OSError, NotImplementedError, Timeout): lock = None
    try: yield
    finally:
        if lock: lock.release()


def _cache_file(path: Path, data: bytes, note):
    "Writes to the cache; where that can't be done, says so in one line and goes on."
    try:
        _write_atomic(path, data)
        return True
    except OSError as e: return note(f"not cached: {path.parent}: {e.strerror or e}")


_HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist"}


def _hub_trouble(name: str, seconds: float = 5) -> str:
    "Why the hub can't be asked for set `name` right now, or an empty string. Answers within `seconds`, whatever happens."
    from urllib.request import urlopen
    if any(os.environ.get(v, "").upper() in ("1", "ON", "YES", "TRUE") for v in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")):
        return "switched off (HF_HUB_OFFLINE)"
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/") + f"/api/datasets/{_HUB[name]}"
    found = [f"no answer within {seconds:g} s"]

    def ask():
        try: urlopen(url, timeout=seconds).close(); found[0] = ""
        except Exception as e: found[0] = f"not reachable ({getattr(e, 'reason', None) or e})"

    asking = threading.Thread(target=ask, daemon=True)   # a thread: name look-ups know no time limit
    asking.start()
    asking.join(seconds)
    return found[0]


def _hub_child(repo: str, out: str):
    "Runs in a process of its own: writes the pixels and labels of hub set `repo` to folder `out`, as raw bytes."
    import os
    import sys
    import threading
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(3)), daemon=True).start()   # ends with its parent
    import numpy as np
    from datasets import load_dataset
    open(f"{out}/ready", "w").close()
    sets = load_dataset(repo)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        with open(f"{out}/{prefix}-images-idx3-ubyte", "wb") as x, open(f"{out}/{prefix}-labels-idx1-ubyte", "wb") as y:
            for i in range(0, len(sets[split]), 1000):
                rows = sets[split][i:i + 1000]
                x.write(np.stack([np.asarray(im, dtype=np.uint8) for im in rows["image"]]).tobytes())
                y.write(np.asarray(rows["label"], dtype=np.uint8).tobytes())
                x.flush()


def _size(folder: str) -> int:
    "Bytes in all files under `folder`."
    total = 0
    for where, _, files in os.walk(folder):
        for f in files:
            try: total += os.stat(os.path.join(where, f)).st_size
            except OSError: pass
    return total


def _run_watched(cmd: list[str], work: str, env: dict, start: float = 60, stall: float = 15, total: float = 900) -> str:
    """Runs `cmd`; '' when it succeeded, else the reason. Killed when nothing under `work` grows for `stall` seconds
    (`start`, until it has written a file called `ready` there) or after `total`."""
    with open(Path(work) / "log", "w+b") as log:
        child = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=log, stderr=log, env=env)
        try:
            began = grew = time.monotonic()
            size = 0
            while child.poll() is None:
                time.sleep(0.1)
                now, new = time.monotonic(), _size(work)
                if new != size: size, grew = new, now
                patience = stall if os.path.exists(os.path.join(work, "ready")) else start
                if now - grew > patience: return f"no progress for {patience:g} s"
                if now - began > total: return f"not done after {total:g} s"
        finally:
            child.kill()
            child.wait()
            child.stdin.close()
        if child.returncode == 0: return ""
        log.seek(0)
        return (log.read().decode(errors="replace").strip().splitlines() or [f"exit status {child.returncode}"])[-1][:200]


def _fetch(name: str, work: str) -> str:
    "Downloads set `name` into folder `work` as raw pixel and label files, in a child process; '' or what went wrong."
    own = {"HF_HOME": f"{work}/hf", "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
           "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    drop = {"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE"}
    env = {k: v for k, v in os.environ.items() if k not in drop} | own
    code = f"import sys\n{inspect.getsource(_hub_child)}\n_hub_child(*sys.argv[1:])"
    return _run_watched([sys.executable, "-c", code, _HUB[name], work], work, env)


def _from_hub(name: str, note) -> Images | None:
    "Source 3, the Hugging Face hub, written to the cache. None, with a note, if it can't be had; never waits long."
    if trouble := _hub_trouble(name): return note(f"{name}: hub {trouble}")
    with _alone(name), tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        if images := _from_cache(name): return images      # another process was faster
        note(f"{name}: fetching from the hub, once")
        if trouble := _fetch(name, work): return note(f"{name}: hub failed ({trouble})")
        folder = Path(work) / "idx"
        for f, shape in _SHAPES.items():
            raw = _idx_bytes(torch.frombuffer(bytearray((Path(work) / f).read_bytes()), dtype=torch.uint8).view(shape))
            _write_atomic(folder / f"{f}.gz", gzip.compress(raw, 6, mtime=0))
        images = _read_set(folder, name, "hub", "The hub's copy differs. Set HF_HUB_OFFLINE=1 to go on without it.")
        for f in _SHAPES:
            if not _cache_file(_cache_folder() / name / f"{f}.gz", (folder / f"{f}.gz").read_bytes(), note): break
        return images


_FONTS = ("DejaVuSans DejaVuSans-Bold DejaVuSans-BoldOblique DejaVuSans-Oblique DejaVuSerif DejaVuSerif-Bold "
          "DejaVuSerif-BoldItalic DejaVuSerif-Italic STIXGeneral STIXGeneralBol STIXGeneralBolIta STIXGeneralItalic "
          "cmb10 cmmi10 cmr10 cmss10 cmti10 cmtt10").split()


def _glyph(char: str, font: str, size: int = 112) -> Tensor:
    "`char` in one of matplotlib's own fonts as a `(size, size)` bool mask, centred, 20/28 of the picture high."
    import matplotlib
    import numpy as np
    from matplotlib.textpath import TextPath
    from PIL import Image, ImageChops, ImageDraw
    path = TextPath((0, 0), char, size=100, prop=Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf"))
    outlines = path.to_polygons()
    xy = np.concatenate(outlines)
    k = size * 20 / 28 / np.ptp(xy[:, 1]) * np.array([1, -1])
    ink = Image.new("1", (size, size))
    for outline in outlines:                 # an outline inside another one is a hole: exclusive or
        one = Image.new("1", ink.size)
        points = (outline - (xy.max(0) + xy.min(0)) / 2) * k + size / 2
        ImageDraw.Draw(one).polygon([tuple(p) for p in points.tolist()], fill=1)
        ink = ImageChops.logical_xor(ink, one)
    return torch.from_numpy(np.array(ink))


def _to_nearest(mask: Tensor) -> Tensor:
    "Distance to the nearest True pixel of `mask` `(n, n)`, at every second pixel: along the rows, then over the columns."
    i = torch.arange(len(mask), dtype=torch.float32)
    gap = (i[::2, None] - i).abs()                                                          # (n/2, n)
    along = torch.where(mask[:, None], gap, 2. * len(mask)).amin(-1)                        # (n, n/2)
    return (along.T[:, None] ** 2 + gap ** 2).amin(-1).T.sqrt()                             # (n/2, n/2)


def _inside(mask: Tensor) -> Tensor:
    "How far the pixels of `mask` lie inside its outline (outside: negative), in picture widths, at half its resolution."
    return (_to_nearest(~mask) - _to_nearest(mask)) / len(mask)


def _warps(n: int, g: torch.Generator, turn: float, shear: float, zoom: tuple[float, float, float], shift: float,
           bend: float) -> Tensor:
    "Where each of the 28×28 pixels of `n` jittered pictures looks in its template: `(n, 28, 28, 2)`, edges at ±1."
    from torch.nn.functional import interpolate
    def r(*size): return torch.randn(n, *size, generator=g)
    c = (torch.arange(28) + 0.5) / 14 - 1
    x, y = c, c[:, None]
    a, s = (turn * r(1, 1)), (shear * r(1, 1))
    size, aspect = zoom[0] * (zoom[1] * r(1, 1)).exp(), (zoom[2] * r(1, 1)).exp()
    u, v = (a.cos() * x + a.sin() * y) / size * aspect, (a.cos() * y - a.sin() * x) / size / aspect   # (n, 28, 28)
    field = interpolate(r(2, 5, 5), (28, 28), mode="bicubic", align_corners=True)
    move = shift * r(2, 1, 1) + bend * field
    return torch.stack([u + s * v, v], -1) + move.permute(0, 2, 3, 1)


def _draw_digits(y: Tensor, g: torch.Generator, glyphs: Tensor) -> Tensor:
    "Jittered digits `y` `(n,)` from `glyphs` `(fonts, 10, h, w)`: pixels `(n, 28, 28)` from 0 to 1."
    from torch.nn.functional import grid_sample
    n = len(y)
    font = torch.randint(len(glyphs), (n,), generator=g)
    grid = _warps(n, g, turn=0.15, shear=0.2, zoom=(0.95, 0.09, 0.08), shift=0.045, bend=0.058)
    d = grid_sample(glyphs[font, y][:, None], grid, padding_mode="border", align_corners=False)[:, 0]   # (n, 28, 28)
    pen, blur = torch.rand(2, n, 1, 1, generator=g)
    ink = ((d + 0.024 * pen - 0.008) / (0.03 + 0.03 * blur) + 0.5).clamp(0, 1)
    return ink * (0.85 + 0.15 * torch.rand(n, 1, 1, generator=g)) + 0.06 * ink * torch.randn(ink.shape, generator=g)


class _Pen:
    "Draws one garment in coordinates from -1 to 1 (y down) on two layers: `cover`, where there is cloth, and `shade`."
    def __init__(self, g: torch.Generator, size: int = 128):
        from PIL import Image, ImageDraw
        self.g, self.size = g, size
        self.layers = [Image.new("L", (size, size), c) for c in (0, 128)]
        self.cover, self.shade = map(ImageDraw.Draw, self.layers)

    def r(self, lo: float, hi: float) -> float: return lo + (hi - lo) * torch.rand((), generator=self.g).item()
    def chance(self, p: float) -> bool: return self.r(0, 1) < p

    def _sides(self, points, both):
        for side in (1, -1) if both else (1,):
            yield [((1 + side * x) * self.size / 2, (1 + y) * self.size / 2) for x, y in points]

    def fill(self, points, value: int = 255, layer: str = "cover", both: bool = False, smooth: int = 2):
        "A filled outline with rounded corners (each round cuts every corner at a quarter of its edges)."
        for p in self._sides(points, both):
            for _ in range(smooth):
                p = [(a[0] + k * (b[0] - a[0]), a[1] + k * (b[1] - a[1]))
                     for a, b in zip(p, p[1:] + p[:1]) for k in (0.25, 0.75)]
            getattr(self, layer).polygon(p, fill=value)

    def line(self, points, width: float, value: int = 255, layer: str = "cover", both: bool = False):
        for p in self._sides(points, both): getattr(self, layer).line(p, value, int(width * self.size / 2), "curve")

    def done(self) -> Tensor:
        "Both layers as a float tensor `(2, 64, 64)`: cover from 0 to 1, shade with 1 for plain cloth."
        import numpy as np
        a = torch.from_numpy(np.stack([np.array(im) for im in self.layers])).float()
        return a.view(2, 64, self.size // 64, 64, self.size // 64).mean((2, 4)) / torch.tensor([255., 128.])[:, None, None]


def _arc(x: float, y: float, rx: float, ry: float, a0: float = 0, a1: float = 360, n: int = 24) -> list:
    "Points on an ellipse around `(x, y)`, degrees clockwise from the right."
    from math import cos, radians, sin
    at = [radians(a0 + (a1 - a0) * i / (n - 1)) for i in range(n)]
    return [(x + rx * cos(a), y + ry * sin(a)) for a in at]


def _torso(p: _Pen, sleeve: float, angle: float, hem: float = 0.9, flare: float = 0, width: float = 0.5) -> dict:
    "A body with sleeves `sleeve` long at `angle` degrees from straight down; returns the measures details need."
    from math import cos, radians, sin
    top, sh, a = -0.88 + p.r(0, 0.06), width + p.r(-0.04, 0.05), radians(angle)
    neck, arm, cuff = 0.2 + p.r(-0.04, 0.06), -0.3 + p.r(-0.1, 0.1), 0.17 + p.r(0, 0.08) + (0 if sleeve > 0.8 else 0.2 * sleeve)
    out = (sh + sleeve * sin(a), top + 0.14 + sleeve * cos(a))
    inn = (out[0] - cuff * cos(a), out[1] + cuff * sin(a))
    waist = width - 0.06 + p.r(-0.04, 0.04)
    right = [(0, top), (neck, top), (sh, top + 0.12), out, inn, (waist, arm), (waist + flare / 2, hem / 2), (waist + flare, hem)]
    p.fill([(-x, y) for x, y in right[1:]][::-1] + right, smooth=1)
    p.line([(waist, arm + 0.03), (sh - 0.04, top + 0.16)], 0.03, 96, "shade", both=True)     # sleeve seams
    if sleeve > 0.8: p.line([(waist, arm), inn], 0.05, 20, "shade", both=True)              # arm against body
    return dict(top=top, neck=neck, waist=waist, hem=hem, inn=inn, out=out)


def _neckline(p: _Pen, m: dict, depth: float, v: bool = False):
    "Cuts a neckline, round or V-shaped, with a rim."
    t, n = m["top"] - 0.04, m["neck"]
    edge = [(n, t), (0, t + 1.3 * depth), (-n, t)] if v else _arc(0, t, n, depth, 0, 180, 12)
    p.fill([(n, t - 0.1), *edge, (-n, t - 0.1)], 0, smooth=0)
    p.line(edge, 0.05, int(p.r(80, 190)), "shade")


def _t_shirt(p: _Pen):
    m = _torso(p, p.r(0.3, 0.62), p.r(20, 55), p.r(0.8, 0.92), p.r(-0.04, 0.08), p.r(0.45, 0.56))
    if p.chance(0.93): _neckline(p, m, p.r(0.12, 0.35), p.chance(0.3))
    if p.chance(0.4): p.fill(_arc(0, p.r(-0.2, 0.1), p.r(0.1, 0.3), p.r(0.08, 0.3)), int(p.r(40, 210)), "shade")   # a print


def _pullover(p: _Pen):
    m = _torso(p, p.r(1.2, 1.5), p.r(5, 20), p.r(0.75, 0.92), p.r(-0.05, 0.03), p.r(0.46, 0.56))
    if p.chance(0.8): _neckline(p, m, p.r(0.08, 0.2), p.chance(0.2))
    else: p.fill([(-0.2, m["top"] - 0.1), (0.2, m["top"] - 0.1), (0.25, m["top"] + 0.1), (-0.25, m["top"] + 0.1)], smooth=0)
    p.line([(-0.6, m["hem"] - 0.09), (0.6, m["hem"] - 0.09)], 0.04, int(p.r(70, 110)), "shade")        # ribbed hem
    if p.chance(0.25): p.fill(_arc(0, p.r(-0.2, 0.1), p.r(0.1, 0.3), p.r(0.08, 0.25)), int(p.r(60, 190)), "shade")


def _coat(p: _Pen):
    m = _torso(p, p.r(1.25, 1.5), p.r(6, 16), p.r(0.86, 0.95), p.r(-0.02, 0.1), p.r(0.47, 0.56))
    t, deep = m["top"], p.r(0.2, 0.6)
    if p.chance(0.88): p.line([(0, t), (p.r(-0.05, 0.05), m["hem"])], p.r(0.03, 0.08), int(p.r(10, 60)), "shade")       # open front
    p.fill([(0, t + deep), (m["neck"], t), (0.02 + m["neck"], t - 0.05)], int(p.r(60, 200)), "shade", both=True, smooth=0)
    if p.chance(0.4): p.fill(_arc(0, t, m["neck"] + 0.1, p.r(0.15, 0.3), 180, 360), smooth=0)                # a hood
    if p.chance(0.6): p.line([(0.2, 0.3), (0.36, p.r(0.22, 0.36))], 0.05, 60, "shade", both=True)              # pockets


def _shirt(p: _Pen):
    long = p.chance(0.65)
    m = _torso(p, p.r(1.15, 1.5) if long else p.r(0.35, 0.65), p.r(4, 20) if long else p.r(20, 50), p.r(0.78, 0.93),
               p.r(-0.03, 0.08), p.r(0.45, 0.55))
    t, n = m["top"], m["neck"]
    _neckline(p, m, p.r(0.1, 0.22), p.chance(0.6))
    if p.chance(0.85):                                                                                      # collar
        p.fill([(n, t - 0.05), (0.02, t + 0.16), (n * 0.7, t + 0.3)], int(p.r(150, 200)), "shade", both=True, smooth=0)
    if p.chance(0.85):                                                                                      # buttons
        p.line([(0, t + 0.15), (0, m["hem"])], 0.025, int(p.r(70, 100)), "shade")
        for i in range(5): p.fill(_arc(0, t + 0.4 + 0.27 * i, 0.04, 0.04, n=9), int(p.r(20, 60)), "shade", smooth=0)
    if p.chance(0.3): p.line([(0.2, -0.2), (0.4, -0.2)], 0.05, 80, "shade")                                     # pocket


def _dress(p: _Pen):
    w = p.r(0.24, 0.34)
    if p.chance(0.45):                                                                                      # on straps
        side = [(w * 0.6, -0.62), (w, -0.35), (w - 0.04, 0), (w + p.r(0, 0.35), 0.93)]
        p.fill([(0, -0.5), *side, *[(-x, y) for x, y in side[::-1]]], smooth=1)
        p.line([(w * 0.6, -0.5), (p.r(0.08, 0.2), -0.93)], p.r(0.05, 0.12), both=True)
    else:
        m = _torso(p, p.r(0.9, 1.2) if p.chance(0.3) else p.r(0.1, 0.45), p.r(8, 22), p.r(0.88, 0.96), p.r(-0.02, 0.3), w)
        if p.chance(0.9): _neckline(p, dict(m, neck=p.r(0.12, 0.2)), p.r(0.1, 0.4), p.chance(0.3))
    if p.chance(0.5): p.line([(-0.5, -0.05), (0.5, -0.05)], p.r(0.03, 0.1), int(p.r(40, 190)), "shade")          # waistband


def _trouser(p: _Pen):
    w, knee, foot, gap = p.r(0.28, 0.4), p.r(0.3, 0.42), p.r(0.26, 0.48), p.r(0.02, 0.1)
    crotch, foot_in = -0.35 + p.r(-0.08, 0.1), p.r(0.06, 0.2)
    p.fill([(0, -0.92), (w, -0.92), (w + 0.06, -0.4), (knee, 0.2), (foot, 0.93), (foot_in, 0.93), (gap, 0.2), (0, crotch)],
           both=True, smooth=1)
    p.fill([(-w, -0.92), (w, -0.92), (w, -0.5), (-w, -0.5)], smooth=0)
    p.line([(-w, -0.8), (w, -0.8)], 0.04, 70, "shade")
    if p.chance(0.6): p.line([(knee * 0.6, -0.3), (foot * 0.7, 0.9)], 0.04, int(p.r(90, 180)), "shade", both=True)   # crease


def _bag(p: _Pen):
    w, lo, top, low = p.r(0.6, 0.88), p.r(0.55, 0.85), p.r(-0.4, 0.1), p.r(0.55, 0.88)
    p.fill([(-lo, top), (lo, top), (w, low), (-w, low)], smooth=int(p.r(0, 3)))
    rx, ry = lo * p.r(0.4, 0.95), p.r(0.3, 0.8)
    if p.chance(0.9): p.line(_arc(0, top + 0.05, rx, min(ry, top + 0.95), 180, 360), p.r(0.06, 0.14))             # handle
    flap = p.r(0.2, 0.6) * (low - top)
    if p.chance(0.6): p.line([(-lo, top), (0, top + flap), (lo, top)], 0.05, int(p.r(30, 90)), "shade")
    else: p.line([(-0.9, top + flap / 3), (0.9, top + flap / 3)], 0.06, int(p.r(30, 220)), "shade")
    if p.chance(0.6): p.fill(_arc(0, top + flap, 0.08, 0.08, n=12), int(p.r(10, 240)), "shade", smooth=0)          # clasp


def _sole(p: _Pen, y: float, heel: float, thick: float):
    "The sole of a shoe pointing left: toe at x = -0.92, heel under x = 0.5 to 0.9, lifted by `heel`."
    back = p.r(0.5, 0.74)
    p.fill([(-0.92, y - thick), (-0.3, y - thick), (0.35, y - heel - thick), (0.92, y - heel - thick), (0.9, y), (back + 0.03, y),
            (back, y - 0.95 * heel), (0.35, y - 0.9 * heel), (-0.3, y), (-0.88, y)], smooth=1)


def _sneaker(p: _Pen):
    y, top, tongue = 0.46 + p.r(-0.05, 0.06), -0.22 + p.r(-0.18, 0.14), p.r(-0.12, 0.12)
    p.fill([(-0.94, y), (-0.96, y - 0.26), (-0.8, y - 0.36), (-0.45, y - 0.42), (tongue, top - 0.08), (tongue + 0.18, top - 0.1),
            (0.5, top + 0.16), (0.8, top - 0.02), (0.94, top), (0.92, y)], smooth=1)
    sole = p.r(0.1, 0.2)
    p.line([(-0.97, y - sole / 2), (0.97, y - sole / 2)], sole, int(p.r(20, 250)), "shade")
    for i in range(4 if p.chance(0.8) else 0):                                                             # laces
        x = -0.42 + 0.13 * i + tongue / 2
        p.line([(x, y - 0.42 - 0.07 * i), (x + 0.13, y - 0.34 - 0.06 * i)], 0.04, int(p.r(30, 220)), "shade")
    if p.chance(0.5): p.line([(p.r(0, 0.3), y - 0.2), (p.r(0.2, 0.6), top + 0.2)], p.r(0.05, 0.12), int(p.r(20, 240)), "shade")


def _sandal(p: _Pen):
    heel, y = (p.r(0.3, 0.75) if p.chance(0.5) else p.r(0, 0.15)), 0.5 + p.r(-0.08, 0.1)
    _sole(p, y, heel, p.r(0.07, 0.16))
    w, back = p.r(0.07, 0.15), y - heel - p.r(0.35, 0.6)
    for x in (-0.72, -0.45, -0.2)[int(p.r(0, 2)):]:                                                        # over the toes
        p.line([(x - 0.1, y - 0.08), (x + 0.06, y - 0.3 - heel / 4), (x + 0.3, y - 0.12 - heel / 4)], w)
    p.line([(0.88, y - heel), (0.86, back), (p.r(0.3, 0.45), back + 0.05)], w)                               # round the heel
    if p.chance(0.7): p.line([(p.r(-0.2, 0), y - 0.2 - heel / 3), (0.4, back + 0.04), (0.6, y - heel)], w)


def _ankle_boot(p: _Pen):
    heel, top = (p.r(0.2, 0.42) if p.chance(0.4) else p.r(0.03, 0.15)), p.r(-0.9, -0.55)
    if p.chance(0.08): top = p.r(-0.45, -0.3)                                                            # almost a sneaker
    y, front = 0.72 + p.r(-0.08, 0.1), p.r(-0.1, 0.15)
    _sole(p, y, heel, 0.12)
    p.fill([(-0.92, y - 0.05), (-0.9, y - 0.3), (-0.4, y - 0.5 - heel / 3), (front, y - 0.75 - heel / 2), (front, top), (0.82, top),
            (0.9, y - heel), (0.3, y - heel)], smooth=1)
    if p.chance(0.6): p.line([(-0.9, y - 0.08), (0.2, y - heel * 0.8 - 0.08), (0.9, y - heel - 0.08)], 0.05, int(p.r(20, 200)), "shade")
    if p.chance(0.5): p.line([(0.35, top), (0.35, top + 0.5)], p.r(0.04, 0.2), int(p.r(40, 90)), "shade")             # elastic
    if p.chance(0.4): p.line([(front - 0.1, y - 0.7), (0.9, y - 0.7)], 0.06, int(p.r(30, 200)), "shade")


_GARMENTS = (_t_shirt, _trouser, _pullover, _dress, _coat, _sandal, _shirt, _sneaker, _bag, _ankle_boot)


def _outlines(n: int, g: torch.Generator) -> Tensor:
    "`n` drawings of each garment: `(n, 10, 2, 64, 64)`, cover and shade."
    def draw(garment):
        pen = _Pen(g)
        garment(pen)
        return pen.done()
    return torch.stack([torch.stack([draw(garment) for garment in _GARMENTS]) for _ in range(n)])


def _cloth(n: int, grid: Tensor, g: torch.Generator) -> Tensor:
    "Brightness of `n` pieces of cloth `(n, 28, 28)`: plain, striped, checked or dotted, with folds and grain."
    from torch.nn.functional import interpolate
    def u(*size): return torch.rand(n, *size, generator=g)
    kind = u(1, 1)                                                         # half are plain
    freq = (6 + 22 * u(2, 1, 1)) * torch.stack([(kind > 0.78), (kind > 0.5) & ((kind < 0.78) | (kind > 0.88))], 1)
    phase = 6.3 * u(2, 1, 1)
    wave = torch.cos(grid[..., 0] * freq[:, 0] + phase[:, 0]) * torch.cos(grid[..., 1] * freq[:, 1] + phase[:, 1])
    pattern = torch.where(kind > 0.5, (2.5 * wave).clamp(-1, 1) * 0.35 * u(1, 1), 0)
    folds = interpolate(torch.randn(n, 1, 6, 6, generator=g), (28, 28), mode="bicubic", align_corners=True)[:, 0]
    base = 0.3 + 0.75 * u(1, 1) ** 0.6
    return base * (1 + pattern + 0.09 * folds) + 0.04 * torch.randn(n, 28, 28, generator=g)


def _draw_garments(y: Tensor, g: torch.Generator, outlines: Tensor) -> Tensor:
    "Jittered garments `y` `(n,)` from `outlines` `(drawings, 10, 2, h, w)`: pixels `(n, 28, 28)` from 0 to 1."
    from torch.nn.functional import grid_sample
    n = len(y)
    which = torch.randint(len(outlines), (n,), generator=g)
    grid = _warps(n, g, turn=0.06, shear=0.05, zoom=(0.97, 0.08, 0.08), shift=0.05, bend=0.03)
    cover, shade = grid_sample(outlines[which, y], grid, align_corners=False).unbind(1)                     # (n, 28, 28)
    flat = torch.rand(n, 1, 1, generator=g)                               # how little the details show
    return cover * (_cloth(n, grid, g) * (1 + (shade - 1) * (0.35 + 0.65 * flat))).clamp(0.02, 1)


def _generate(name: str, n: int, seed: int) -> tuple[Tensor, Tensor]:
    "`n` generated images and labels of set `name`, all ten classes equally often, in random order."
    g = torch.Generator().manual_seed(seed)
    if name == "mnist":
        templates = torch.stack([torch.stack([_inside(_glyph(c, font)) for c in "0123456789"]) for font in _FONTS])
        draw = _draw_digits
    else: templates, draw = _outlines(120, g), _draw_garments
    y = torch.randperm(n, generator=g) % 10
    x = torch.cat([torch.empty(0, 28, 28)] + [draw(part, g, templates) for part in y.split(2500)])
    return (x.clamp(0, 1) * 255).round().to(torch.uint8), y


_TOY_VERSION = 1   # raise it whenever the generator draws differently, so that cached images are drawn anew


def toy_images(name: str = "mnist", n_train: int = 60_000, n_valid: int = 10_000, seed: int = 42) -> Images:
    """Generated stand-ins for image set `name`: digits from matplotlib's fonts, garments from outlines, all jittered.

    The same arguments give the same bytes each time. The default set takes some seconds and is cached."""
    class_names(name)
    x, y = _generate(name, n_train + n_valid, seed)
    return Images(x[:n_train], y[:n_train], x[n_train:], y[n_train:], name, "built-in")


def get_images(name: str = "mnist", quiet: bool = False) -> Images:
    """Image set `name` ("mnist" or "fashion_mnist") as `Images`; prints one line saying where it came from.

    Looks in the folder GROUNDUP_DATA names, the user's cache, the Hugging Face hub, and last generates built-in
    images. A damaged file is a `ValueError` naming it, never a reason to use another source; an unknown name is one too."""
    class_names(name)
    def note(line): None if quiet else print(line)
    images = _from_folder(name, note) or _from_cache(name) or _from_hub(name, note) or toy_images(name)
    where = {"folder": "read from the folder GROUNDUP_DATA names", "cache": "read from the user cache",
             "hub": "downloaded from the Hugging Face hub", "built-in": "BUILT-IN generated images, not the real set"}
    note(f"{name}: {len(images.x_train):,} + {len(images.x_valid):,} images, {where[images.source]}")
    return images
