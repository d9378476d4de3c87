"""The runner's side of a kernel's process: starting it, what it left behind, and ending it with all it started."""
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

POSIX = os.name == "posix"
LINUX = sys.platform.startswith("linux")
LAUNCHER = Path(__file__).resolve().with_name("runner_kernel.py")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
           "VECLIB_MAXIMUM_THREADS")
# what may be written anywhere: caches and the like. settings.ini's out_path comes on top
ALLOWED = {"__pycache__", ".ipynb_checkpoints", ".git", ".venv", ".pytest_cache", ".ruff_cache", ".hypothesis",
           ".mypy_cache", "node_modules"}


def temp_base() -> str:
    "Where the kernels' folders are: with a path short enough for a socket, where that can be had."
    base = tempfile.gettempdir()
    return "/tmp" if POSIX and len(os.fsencode(base)) > 60 and os.access("/tmp", os.W_OK) else base


def run_folder() -> Path:
    "A fresh folder for one kernel."
    return Path(tempfile.mkdtemp(prefix=f"run_nb-{os.getpid()}-", dir=temp_base()))


def sweep() -> None:
    "Remove the folders of runners that were killed more than a day ago and could not."
    for folder in Path(temp_base()).glob("run_nb-*-*"):
        try:
            old = folder.stat().st_mtime < time.time() - 86400
            if old and not Path("/proc", folder.name.split("-")[1]).exists():
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            pass


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
    env |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "IPYTHONDIR": str(folder / "ipython")}         # neither a user's profile nor a race to create it
    return env


class Kernel:
    "One kernel's process (on POSIX its supervisor's), started for `notebook` by creating this."
    running: set["Kernel"] = set()
    claimed: set[str] = set()                              # paths that kernels, ended ones too, wrote to themselves

    def __init__(self, notebook: Path, root: Path | None, threads: int | None, device: str, out_name: str = "_out",
                 watched: Path | None = None):
        self.notebook, self.reason = notebook, ""
        self.folder = run_folder()
        self.roots = list(dict.fromkeys(p for p in (watched, notebook.parent) if p))
        self.allowed = ALLOWED | {out_name}
        self.before = {d: _names(d) for d in self.roots}
        Kernel.running.add(self)
        ipc = POSIX and len(os.fsencode(str(self.folder))) <= 90
        config = {"transport": "ipc" if ipc else "tcp", "ip": str(self.folder / "k") if ipc else "127.0.0.1",
                  "roots": [os.path.join(p, "") for p in self.roots]}
        (self.folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with open(self.folder / "log", "wb") as log:
            self.proc = subprocess.Popen(
                [sys.executable, str(LAUNCHER), str(self.folder), str(os.getpid())], cwd=notebook.parent,
                env=kernel_env(root, threads, device, self.folder), stdout=log, stderr=log,
                stdin=subprocess.DEVNULL if POSIX else subprocess.PIPE, start_new_session=POSIX)

    def read(self, name: str) -> str:
        "A file the kernel left in its folder, or nothing."
        try:
            return (self.folder / name).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def poll(self) -> int | None:
        "The exit status, negative for a signal; `None` while it runs."
        return self.proc.poll()

    def signal(self, signum: int) -> None:
        "To the kernel itself, not to its supervisor."
        try:
            os.kill(int(self.read("pid")), signum)
        except (OSError, ValueError):
            pass

    def interrupt(self) -> None:
        "As Ctrl-C would, to the kernel and what it started."
        if POSIX and self.poll() is None:
            try:
                os.killpg(self.proc.pid, signal.SIGINT)
            except OSError:
                pass

    def note_stack(self) -> None:
        "Have the kernel write to fault.log what it is doing, even when it listens to nothing."
        if POSIX and self.poll() is None:
            self.signal(signal.SIGUSR1)

    async def gone(self, seconds: float) -> bool:
        "Whether it ends within `seconds`."
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return self.poll() is not None

    def terminate(self) -> None:
        "Ask the supervisor to kill everything; where there is none, kill the process tree."
        if self.poll() is None:
            if POSIX:
                self.proc.terminate()
            else:
                _kill_tree(self.proc.pid)

    async def end(self, grace: float = 0) -> None:
        "See it gone with all it started: at once, or first waiting `grace` seconds for it to end by itself."
        if not grace or not await self.gone(grace):
            self.terminate()
            if not await self.gone(15):
                self.kill_group()

    def kill_group(self) -> None:
        "The last resort."
        try:
            os.killpg(self.proc.pid, signal.SIGKILL) if POSIX else self.proc.kill()
        except OSError:
            pass
        with suppress(subprocess.TimeoutExpired):          # it waits for a disk, say: it will go when it is done
            self.proc.wait(5)

    def heard(self, number: object) -> None:
        "Tell a kernel that is about to end that its output is here, see `farewell` there."
        if isinstance(number, int) and 0 < number < 1e9:
            with suppress(OSError):
                (self.folder / f"heard-{number}").touch()

    def clean(self) -> None:
        "Remove the kernel's folder."
        Kernel.running.discard(self)
        if self.proc.stdin:
            self.proc.stdin.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def memory(self) -> int:
        "Bytes held by the kernel and all it started; on Linux, pages shared between them are counted once."
        import psutil
        try:
            top = psutil.Process(self.proc.pid)
            procs = [top, *top.children(recursive=True)]
        except psutil.Error:
            return 0
        return sum(_held(p) for p in procs)

    def deadly_line(self) -> tuple[int | None, str]:
        "Line of the running cell, and the stack, from the last stack the kernel left (see `note_stack`)."
        best: tuple[int | None, str] = None, ""
        for block in re.split(r"\n(?=(?:Current )?[Tt]hread )", self.read("fault.log")):
            frames = [f for f in re.findall(r'  File "(.+)", line (\d+) in (.+)', block) if f[0] != str(LAUNCHER)]
            cells = [f for f in frames if re.search(r"[/\\]ipykernel_\d+[/\\]", f[0])]
            if cells:
                shown = frames[:frames.index(cells[-1]) + 1][::-1]
                rows = [f'  File "{"the cell" if f in cells else f[0]}", line {f[1]}, in {f[2]}' for f in shown]
                best = int(cells[-1][1]), "\n".join(["Stack (most recent call last):", *rows])
        return best

    # -- files left behind

    def written(self) -> tuple[bool, list[str]]:
        """Whether the notebook's own file was written to, and what was made, changed or deleted where it should not be.

        Known from the kernel's audit hook, so that what other notebooks and people do meanwhile is never blamed on this
        one. What other programs it started wrote is seen as new names in the notebook's folder and the root."""
        own, found, started = False, {}, None
        me = os.path.realpath(self.notebook)
        rows = self._rows()
        Kernel.claimed |= {row[1] for row in rows if row[0] == "path"}
        for row in rows:
            if row[0] == "start":
                started = min(started or row[1], row[1])
                continue
            path, before = Path(row[1]), row[2]
            if path in found:
                continue
            changed = self._change(path, before)
            if changed and os.path.realpath(path) == me:
                own = True
            elif changed and not self._may_write(path):
                found[path] = changed
        if started:
            found |= {p: "made by a program it started" for p in self._appeared(started) if p not in found}
        tops = [p for p in sorted(found) if not any(q in found for q in p.parents)]
        return own, [f"{os.path.relpath(p, self.notebook.parent)} ({found[p]})" for p in tops]

    def _rows(self) -> list:
        "What the audit hook recorded; a row cut short by the kernel's death, or by another hand, is left out."
        return [row for text in self.read("writes.log").splitlines() if (row := _row(text))]

    def _appeared(self, since: float) -> list[Path]:
        "New names beside the notebook and in the root since then, but for those that other kernels account for."
        others = set(Kernel.claimed)
        for kernel in Kernel.running - {self}:
            others |= {row[1] for row in kernel._rows() if row[0] == "path"}
        paths = [folder / name for folder in self.roots for name in sorted(_names(folder) - self.before[folder])
                 if not (name.startswith(".") or name.endswith(".ipynb"))]
        return [p for p in paths if str(p) not in others and not self._may_write(p) and p.lstat().st_ctime >= since - 1]

    @staticmethod
    def _change(path: Path, before: list | None) -> str:
        try:
            s = path.lstat()
        except OSError:
            return "deleted" if before else ""
        if before is None:
            return "new"
        return "changed" if before != [s.st_mtime_ns, s.st_size, s.st_ino] and not path.is_dir() else ""

    def _may_write(self, path: Path) -> bool:
        return any(self.allowed & set(path.relative_to(r).parts) for r in self.roots if path.is_relative_to(r))


def _row(text: str) -> list | None:
    "A row of the audit hook's record, `None` for a line that is none."
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    match row:
        case ["start", float()] | ["path", str(), None | [int(), int(), int()]] if "\0" not in str(row[1]):
            return row
    return None


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _held(proc) -> int:
    import psutil
    try:
        rss = proc.memory_info().rss
        if rss > 50e6 and LINUX:                           # the exact figure costs more: only for the big ones
            return proc.memory_full_info().pss
        return rss
    except (psutil.Error, OSError):
        return 0


def _kill_tree(pid: int) -> None:
    import psutil
    try:
        top = psutil.Process(pid)
        for p in [*top.children(recursive=True), top]:
            p.kill()
    except psutil.Error:
        pass


def adopt_orphans() -> None:
    "Second line of defence on Linux: what a killed supervisor leaves comes to this process, see `end_orphans`."
    if LINUX:
        import ctypes
        try:
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        except (OSError, AttributeError):
            pass


def end_orphans() -> None:
    "Kill every child this process still has, and those that come to it thereby."
    if not LINUX:
        return
    for _ in range(50):
        strangers = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = Path("/proc", pid, "stat").read_bytes().rpartition(b")")[2].split()
                if int(stat[1]) == os.getpid():
                    strangers.append(int(pid))
            except (OSError, IndexError, ValueError):
                pass
        if not strangers:
            return
        for pid in strangers:
            try:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            except OSError:
                pass
