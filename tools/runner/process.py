"""The runner's side of a kernel's process: starting it, what it left in its folder, ending it with all it started."""
import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from common import find_settings

from runner.strays import PREFIX, Strays, text_of
from runner.supervisor import LINUX
from runner.text import without_frames

POSIX = os.name == "posix"
LAUNCHER = Path(__file__).with_name("supervisor.py")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
           "VECLIB_MAXIMUM_THREADS")


def sweep() -> None:
    "Remove the folders of runners that were killed more than a day ago and could not."
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        with suppress(OSError):
            old = folder.stat().st_mtime < time.time() - 86400
            if old and not Path("/proc", folder.name.split("-")[1]).exists():
                shutil.rmtree(folder, ignore_errors=True)


def kernel_env(root: Path | None, threads: int | None, device: str, folder: Path) -> dict[str, str]:
    """The environment of a kernel: `root` importable, `threads` for the libraries that count them (what you have set
    yourself stays), and nothing in it that would make a run here differ from a run elsewhere."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JPY_", "IPYKERNEL_"))
           and k not in ("NO_COLOR", "FORCE_COLOR", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTEST_CURRENT_TEST")}
    if root:
        env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    for name in THREADS if threads else ():
        env[name] = env.get(name) or str(threads)
    if device != "auto":
        env["GROUNDUP_DEVICE"] = device
    env.setdefault("PYTHONHASHSEED", "0")
    if "OMP_WAIT_POLICY" not in env:                       # all this as in exp, which a notebook may import after torch
        env |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": env.get("GOMP_SPINCOUNT", "10000")}
    if os.path.isdir("/sys/kernel/mm/transparent_hugepage"):
        env.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    env |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "IPYTHONDIR": str(folder / "ipython")}         # neither a user's profile nor a race to create it
    return env


class NoStart(Exception):
    "The kernel did not start, and why."


class Kernel:
    "One kernel's process (on POSIX its supervisor's), started beside `notebook` by creating this."

    def __init__(self, notebook: Path, opts: Namespace, threads: int | None):
        self.reason = ""                                   # why it was ended, where its status does not say it
        here, places = notebook.parent, [opts.settings.values.get("out_path", "_out")]
        if opts.slow and "log_path" in opts.settings.values:
            places.append(opts.settings.values["log_path"])
        root = find_settings(here).root or opts.settings.root
        watched = [root, here] if root and root != here and notebook.is_relative_to(root) else [here]
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))
            self.strays = Strays(self.folder / "writes.log", notebook, watched, places)
            with open(self.folder / "log", "wb") as log:
                self.proc = subprocess.Popen(
                    [sys.executable, str(LAUNCHER), str(self.folder), str(os.getpid()), *map(str, watched)],
                    cwd=here, env=kernel_env(root, threads, opts.device, self.folder), stdout=log, stderr=log,
                    stdin=subprocess.DEVNULL, start_new_session=POSIX)
        except OSError as e:
            raise NoStart(f"the kernel could not be started: {e.strerror or e}") from None

    def read(self, name: str) -> str:
        return text_of(self.folder / name)

    def poll(self) -> int | None:
        "The exit status of the process, negative for a signal; `None` while it runs."
        return self.proc.poll()

    def status(self) -> int:
        "How the kernel, not its supervisor, ended: as `poll` says it."
        try:
            return int(self.read("status"))
        except ValueError:
            return self.poll() or 0

    def note_stack(self) -> None:
        "Have the kernel, not its supervisor, write to fault.log what it is doing, even when it listens to nothing."
        if POSIX and self.poll() is None:
            with suppress(OSError, ValueError):
                os.kill(int(self.read("pid")), signal.SIGUSR1)

    def interrupt(self) -> None:
        "As Ctrl-C would, to the kernel and what it started."
        if POSIX and self.poll() is None:
            with suppress(OSError):
                os.killpg(self.proc.pid, signal.SIGINT)

    def last_stack(self) -> tuple[int | None, str]:
        "Line of the running cell, and the stack, the last time the kernel noted where it was (see `note_stack`)."
        found: tuple[int | None, str] = None, ""
        for block in re.split(r"\n(?=(?:Current )?[Tt]hread )", without_frames(self.read("fault.log"))):
            frames = re.findall(r'  File "(.+)", line (\d+) in (.+)', block)
            cells = [f for f in frames if re.search(r"[/\\]ipykernel_\d+[/\\]", f[0])]
            if cells:
                shown = frames[:frames.index(cells[-1]) + 1][::-1]
                rows = [f'  File "{"the cell" if f in cells else f[0]}", line {f[1]}, in {f[2]}' for f in shown]
                found = int(cells[-1][1]), "\n".join(["Stack (most recent call last):", *rows])
        return found

    def terminate(self) -> None:
        "Ask the supervisor to kill everything; where there is none (Windows), kill the process tree."
        if POSIX:
            self.proc.terminate()
        else:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.proc.pid)], capture_output=True)

    def kill_group(self) -> None:
        "The last resort; what waits for a disk, say, will go when it is done."
        with suppress(OSError):
            os.killpg(self.proc.pid, signal.SIGKILL) if POSIX else self.proc.kill()

    async def end(self, grace: float = 0) -> None:
        "See it gone with all it started: at once, or first waiting `grace` seconds for it to end by itself."
        for act, seconds in (None, grace), (self.terminate, 15), (self.kill_group, 5):
            until = time.monotonic() + seconds
            if act and self.poll() is None:
                act()
            while self.poll() is None and time.monotonic() < until:
                await asyncio.sleep(0.01)
        if POSIX and not LINUX:                            # there, orphans are only found by their group
            self.kill_group()

    def clean(self) -> None:
        "Remove the kernel's folder."
        shutil.rmtree(self.folder, ignore_errors=True)

    def memory(self) -> int:
        "Bytes held by the kernel and all it started; on Linux, pages that big ones share are counted once."
        import psutil
        held = 0
        with suppress(psutil.Error):
            top = psutil.Process(self.proc.pid)
            for p in [top, *top.children(recursive=True)]:
                with suppress(psutil.Error, OSError):      # it is gone, or not ours to look at
                    rss = p.memory_info().rss
                    held += p.memory_full_info().pss if LINUX and rss > 50e6 else rss
        return held
