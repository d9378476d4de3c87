"""Run notebooks as tests: each in a fresh kernel of this Python, any failure reported so that it can be found.

    tools/run_notebook.py                        all of the project's notebooks, in number order
    tools/run_notebook.py nbs/01_matmul.ipynb    one; also folders and globs
    tools/run_notebook.py --slow --workers 1     everything, one at a time

Exit status 0: all passed; 1: something failed; 2: called wrongly.
"""
import signal

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)           # until something runs, Ctrl-C just ends it

import asyncio
import glob
import json
import os
import re
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

from common import Misuse, Settings, find_settings, printable  # noqa: E402
from runner_notebook import BadFile, Fault, Notebook, NotSaved  # noqa: E402
from runner_process import Kernel, adopt_orphans, end_orphans, sweep  # noqa: E402
from runner_report import (  # noqa: E402
    Progress,
    Screen,
    clock,
    finish_page,
    headline,
    junit,
    plural,
    report,
    slowest,
    start_page,
    verdict,
    write_page,
)

FLAGS = ("slow", "save", "fail_fast", "stream")            # options that are there or not
ATTEMPTS = 3                                               # to start a kernel
SKIPPED_FOLDERS = re.compile(r"[._]")                      # not searched for notebooks: .ipynb_checkpoints, _out, …


@dataclass
class Options:
    "The command line, checked."
    paths: tuple[str, ...]
    settings: Settings
    slow: bool = False
    device: str = "auto"
    workers: int | None = None
    cell: float = 600
    notebook: float = 1800
    memory: float = 0
    save: bool = False
    html: Path | None = None
    junit: Path | None = None
    durations: int = 0
    fail_fast: bool = False
    stream: bool = False


def options(*paths, slow=False, device="auto", workers=None, timeout=None, memory=None, save=False, html=None,
            junit=None, durations=0, fail_fast=False, stream=False) -> Options:
    """Run notebooks as tests, each in a fresh kernel of this Python.

    Args:
        paths: notebooks, folders or globs; all of the project's notebooks when there are none.
        slow: run cells marked #slow too.
        device: auto, cpu or cuda; what GROUNDUP_DEVICE is set to, and whether cells marked #cuda run.
        workers: notebooks at a time; as many as cores by default, one on a GPU. CPU threads are divided among them.
        timeout: seconds a cell may take (default: cell_timeout or slow_cell_timeout of settings.ini); 0 is no limit.
        memory: what a kernel and all it starts may hold, as in 2G or 500M (a number alone is GB); 0 is no limit. A
            notebook that holds more fails, the others run on. It is looked at many times a second, on every system;
            only on Linux is memory that processes share counted once.
        save: write the new outputs into the notebooks, cleaned; cells that were skipped keep theirs. A file that was
            changed meanwhile is left alone, and the notebook with its outputs goes to the out_path of settings.ini.
        html: folder for a page of each executed notebook.
        junit: file for a JUnit XML report.
        durations: list so many of the slowest cells.
        fail_fast: stop at the first failure.
        stream: print what the cells print, as they do.
    """
    settings = find_settings()
    settings = settings if settings.root else find_settings(HERE)
    if device not in ("auto", "cpu", "cuda"):
        raise Misuse(f"--device is auto, cpu or cuda, not {device!r}")
    pre, hours4 = "slow_" if _flag("slow", slow) else "", 14400
    cell = _number("timeout", timeout, float, 0, settings.number(f"{pre}cell_timeout", hours4 if pre else 600))
    whole = settings.number(f"{pre}notebook_timeout", hours4 if pre else 1800)
    return Options(
        tuple(paths), settings, bool(pre), device, _number("workers", workers, int, 1),
        cell, max(whole, cell) if timeout else whole, _gigabytes("memory", memory),
        _flag("save", save), _place("html", html), _place("junit", junit), _number("durations", durations, int, 0, 0),
        _flag("fail_fast", fail_fast), _flag("stream", stream))


def _number(name: str, value, kind: type, least: float, default=None):
    if value is None:
        return default
    try:
        number = kind(str(value))
    except ValueError:
        number = None
    if number is None or not least <= number < 1e9:
        raise Misuse(f"--{name} should be a {'whole ' if kind is int else ''}number from {least} up, not {value!r}")
    return number


def _gigabytes(name: str, value) -> float:
    "2, 2G and 2GB are the same, 500M is half a one."
    m = re.fullmatch(r"(.*?)\s*(?:([GM])B?)?", "0" if value is None else str(value), re.I | re.S)
    with suppress(Misuse):
        return _number(name, m[1], float, 0) / (1000 if (m[2] or "").upper() == "M" else 1)
    raise Misuse(f"--{name} should be a size such as 2G or 500M, not {value!r}")


def _flag(name: str, value) -> bool:
    if str(value) not in ("True", "False"):
        raise Misuse(f"--{name} takes no value, not {value!r}")
    return str(value) == "True"


def _place(name: str, value) -> Path | None:
    if value is None:
        return None
    if str(value) in ("True", "False", ""):
        raise Misuse(f"--{name} needs a {'folder' if name == 'html' else 'file'}")
    return Path(value).absolute()


# -- which notebooks --------------------------------------------------------------------------------------------------

def number_order(path: Path) -> list:
    "Sorts 2 before 10, 05 before 05a before 05b."
    return [(int(t), "") if t.isdecimal() else (-1, t) for t in re.split(r"(\d+)", path.stem) if t] + [(0, str(path))]


def in_folder(folder: Path) -> list[Path]:
    "The notebooks in and below `folder`."
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not SKIPPED_FOLDERS.match(f)]
        found += [Path(where, f) for f in files if f.endswith(".ipynb") and not f.startswith(".")]
    return found


def find_notebooks(paths: tuple[str, ...], settings: Settings) -> list[Path]:
    "The files that `paths` mean, each once, in number order; raises `Misuse` for one that means nothing."
    nbs = settings.path("nbs_path", "nbs")
    found = []
    for path in paths or (str(nbs),):
        p = Path(path)
        named = nbs / (path if path.endswith(".ipynb") else path + ".ipynb")
        if p.is_dir():
            new = in_folder(p)
        elif p.exists():
            new = [p]
        elif glob.has_magic(path):
            new = [Path(f) for f in glob.glob(path, recursive=True) if f.endswith(".ipynb")]
        elif named.is_file():
            new = [named]
        else:
            raise Misuse(f"{path}: no such file or folder")
        if not new:
            raise Misuse(f"{path}: no notebooks there")
        found += new
    return sorted({f.absolute(): None for f in found}, key=number_order)


def label(path: Path) -> str:
    with suppress(ValueError):
        path = path.relative_to(Path.cwd())
    return printable(str(path))


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    "Whether torch can use a CUDA device; asked in a process of its own, and only where there is a driver."
    import shutil
    if not (Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi")):
        return False
    code = "import torch; print(torch.cuda.is_available())"
    try:
        return subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120).stdout.strip() == b"True"
    except (OSError, subprocess.SubprocessError):
        return False


# -- running ----------------------------------------------------------------------------------------------------------

class Runner:
    "Runs notebooks: `workers` at a time, and the next kernels starting meanwhile."

    def __init__(self, paths: list[Path], opts: Options, screen: Screen):
        self.opts, self.screen = opts, screen
        self.nbs = [Notebook(p, label(p)) for p in paths]
        self.cuda = self._decide_cuda(paths)
        self.workers = min(opts.workers or (1 if self.cuda else cores()), len(paths))
        self.threads = max(1, cores() // self.workers) if self.workers > 1 else None
        self.queue, self.ready = deque(self.nbs), deque()
        self.kernels: set[Kernel] = set()
        self.helpers: set[subprocess.Popen] = set()
        self.tasks: set[asyncio.Task] = set()
        self.finishing: set[asyncio.Task] = set()
        self.progress = Progress(screen, len(self.nbs))
        self.stopped, self.signal, self.names = "", 0, {}

    def _decide_cuda(self, paths: list[Path]) -> bool:
        "Looks for a GPU only where the answer matters."
        if self.opts.device == "cpu":
            return False
        if self.opts.device == "cuda":
            if not has_gpu():
                raise Misuse("--device cuda: torch sees no CUDA device here")
            return True
        matters = self.opts.workers is None and len(paths) > 1
        for p in paths:
            with suppress(OSError):
                matters = matters or p.is_file() and bool(re.search(rb"#\s*\|?\s*cuda\b", p.read_bytes(), re.I))
        return matters and has_gpu()

    # -- notebooks and their kernels

    def prepare(self) -> tuple[Notebook, Kernel | None] | None:
        "Take the next notebook from the queue, read it, and start its kernel if it needs one."
        if not self.queue:
            return None
        nb = self.queue.popleft()
        nb.start = time.monotonic()
        try:
            nb.read(self.opts.slow, self.cuda)
            return nb, self.start_kernel(nb) if nb.has_code else None
        except BadFile as e:
            nb.faults.append(Fault(str(e)))
        except OSError as e:
            nb.faults.append(Fault(f"the kernel could not be started: {e.strerror or e}"))
        except Exception as e:
            nb.faults.append(own_fault(e))
        return nb, None

    def start_kernel(self, nb: Notebook) -> Kernel:
        root = find_settings(nb.path.parent).root or self.opts.settings.root
        inside = root if root and nb.path.is_relative_to(root) else None
        out = self.opts.settings.values.get("out_path", "_out")
        kernel = Kernel(nb.path, root, self.threads, self.opts.device, out, watched=inside)
        self.kernels.add(kernel)
        return kernel

    async def work(self) -> None:
        "One worker: notebook after notebook."
        while not self.stopped:
            item = self.ready.popleft() if self.ready else self.prepare()
            if item is None:
                return
            nb, kernel = item
            nb.start = time.monotonic()
            try:
                if kernel:
                    kernel = await self.run_cells(nb, kernel)
            except asyncio.CancelledError:
                nb.why = self.stopped or "stopped"
                raise
            except Exception as e:                         # the others still run
                nb.faults.append(own_fault(e))
            finish = asyncio.create_task(self.finish(nb, kernel))
            self.finishing.add(finish)
            if self.workers == 1:
                await asyncio.shield(finish)               # nothing runs beside a notebook that runs alone

    async def run_cells(self, nb: Notebook, kernel: Kernel) -> Kernel:
        "Run the notebook's cells; starts another kernel when one does not come up. Returns the kernel used."
        from runner_client import Limits, NoStart, Run
        limits = Limits(self.opts.cell, self.opts.notebook, self.opts.memory)
        for attempt in range(ATTEMPTS):
            run = Run(nb, kernel, limits, self.on_cell, self.streamer(nb) if self.opts.stream else None)
            self.progress.running[nb] = [0, len(nb.cells), nb.start]
            try:
                await run.execute()
                nb.seconds = time.monotonic() - nb.start
                return kernel
            except NoStart as e:
                await kernel.end()
                if attempt == ATTEMPTS - 1:
                    nb.faults.append(Fault(str(e)))
                    return kernel
                self.drop(kernel)
                kernel = self.start_kernel(nb)
            finally:
                self.progress.running.pop(nb, None)
        raise AssertionError("unreachable")

    def on_cell(self, run) -> None:
        "A cell is about to run: show it, and once this notebook is under way start the next kernel."
        self.progress.running[run.nb][0] = run.current
        if self.workers > 1 and len(self.ready) < self.workers:
            item = self.prepare()
            if item:
                self.ready.append(item)

    def streamer(self, nb: Notebook):
        "What prints a cell's text as it comes, under a rule with the cell's number."
        last = None

        def show(index: int, text: str) -> None:
            nonlocal last
            if text and index != last:
                last = index
                self.screen.line(self.screen.paint(f"── {nb.path.stem}, cell {index + 1}", "dim"))
            self.screen.stream(text)
        return show

    async def finish(self, nb: Notebook, kernel: Kernel | None) -> None:
        "End the kernel, judge what it left, save, and report."
        try:
            if kernel:
                await kernel.end(grace=0 if nb.faults else 5)
                self.judge_files(nb, kernel)
                self.drop(kernel)
            if self.opts.save and kernel and not nb.faults:
                nb.notes += ["saved"] if nb.save() else ["outputs unchanged"]
        except NotSaved as e:
            nb.faults.append(Fault(f"{e}; {self.keep(nb)}"))
        except Exception as e:
            nb.faults.append(own_fault(e))
        if self.opts.html and nb.cells:
            await self.make_page(nb)
        nb.state = "failed" if nb.faults else "passed"
        self.progress.done += 1
        try:
            for text in [verdict(nb, self.screen), *(report(nb, fault, self.screen) for fault in nb.faults)]:
                self.screen.line(text)
            nb.forget()
        except BrokenPipeError:                            # nobody reads any more
            self.stop("stopped: its output is closed")
        if nb.faults and self.opts.fail_fast:
            self.stop("stopped by --fail_fast")

    def judge_files(self, nb: Notebook, kernel: Kernel) -> None:
        "Leaving files behind is a fault, and so is writing to one's own."
        own, strays = kernel.written()
        if own:
            nb.faults.append(Fault("it writes to its own file while it runs; only --save may do that"))
        if strays:
            out = self.opts.settings.values.get("out_path", "_out")
            nb.faults.append(Fault(f"it leaves files outside {out}/: " + ", ".join(strays[:10])
                                   + (" …" if len(strays) > 10 else "")))

    def name_for(self, nb: Notebook) -> str:
        "What a file made from a notebook is called, where those of all notebooks lie together."
        name = nb.path.stem
        return name if self.names.setdefault(name, nb.path) == nb.path else f"{nb.path.parent.name}_{name}"

    def keep(self, nb: Notebook) -> str:
        "Write a notebook that could not be saved to where its outputs are not lost; returns what to say."
        settings = find_settings(nb.path.parent)
        file = (settings.path("out_path", "_out") if settings.root else nb.path.parent / "_out").absolute()
        file /= f"{self.name_for(nb)}.executed.ipynb"
        try:
            write_page(file, json.dumps(nb.with_outputs(counts=False), indent=1).encode() + b"\n")
        except (OSError, ValueError) as e:
            return f"run it again (nor could {label(file)} be written: {getattr(e, 'strerror', None) or e})"
        return f"its outputs are in {label(file)}"

    async def make_page(self, nb: Notebook) -> None:
        "Write the executed notebook as a page into the --html folder."
        file = self.opts.html / f"{self.name_for(nb)}.html"
        try:
            proc, data = start_page(nb)
            self.helpers.add(proc)
            page, why = await asyncio.to_thread(finish_page, proc, data)
            self.helpers.discard(proc)
            if page:
                write_page(file, page)
        except OSError as e:
            why = e.strerror or str(e)
        if why:
            nb.faults.append(Fault(f"no page {label(file)}: {why}"))
        else:
            nb.notes.append(f"page: {label(file)}")

    def drop(self, kernel: Kernel) -> None:
        kernel.clean()
        self.kernels.discard(kernel)

    # -- all of them

    def stop(self, why: str, signum: int = 0) -> None:
        "Start no more, and end what runs."
        if self.signal:                                    # asked twice: at once
            for kernel in self.kernels:
                kernel.kill_group()
            end_orphans()
            for kernel in self.kernels:
                kernel.clean()
            os._exit(128 + self.signal)
        self.stopped, self.signal = self.stopped or why, signum
        for task in self.tasks:
            task.cancel()

    async def run(self) -> None:
        "Run all; afterwards `nbs` hold what became of them."
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            with suppress(NotImplementedError, AttributeError, ValueError):
                signum = getattr(signal, name)
                loop.add_signal_handler(signum, self.stop, f"stopped by {name}", signum)
        first = [self.prepare() for _ in range(self.workers)]
        self.ready.extend(item for item in first if item)
        import runner_client  # noqa: F401 - while the first kernels start
        ticker = asyncio.create_task(self.tick())
        try:
            self.tasks = {asyncio.create_task(self.work()) for _ in range(self.workers)}
            await asyncio.gather(*self.tasks, return_exceptions=True)
            await asyncio.gather(*self.finishing, return_exceptions=True)
        finally:
            ticker.cancel()
            await asyncio.shield(self.end_everything())
            self.screen.status("")
        for nb in self.nbs:
            nb.why = nb.why or self.stopped

    async def tick(self) -> None:
        while True:
            self.progress.draw()
            await asyncio.sleep(0.2)

    async def end_everything(self) -> None:
        "No process of ours outlives the run."
        for proc in self.helpers:
            proc.kill()
        await asyncio.gather(*(k.end() for k in self.kernels), return_exceptions=True)
        for kernel in list(self.kernels):
            self.drop(kernel)
        sweep()


def own_fault(e: Exception) -> Fault:
    "A fault of the runner's own, with the place to mend."
    tb = e.__traceback__
    while tb and tb.tb_next:
        tb = tb.tb_next
    where = f"{Path(tb.tb_frame.f_code.co_filename).name}:{tb.tb_lineno}" if tb else "?"
    return Fault(f"the runner itself failed, {where}: {type(e).__name__}: {e}")


def summary(runner: Runner, seconds: float) -> int:
    "Print what closes a run, write the JUnit file, and return the exit status."
    screen, nbs, opts = runner.screen, runner.nbs, runner.opts
    failed = [nb for nb in nbs if nb.state == "failed"]
    for nb in nbs:
        if nb.state == "skipped":
            screen.line(verdict(nb, screen))
    if opts.durations:
        screen.line(slowest(nbs, opts.durations))
    if len(nbs) > 1:
        for nb in failed:
            for fault in nb.faults:
                screen.line(screen.paint("FAILED  ", "red") + headline(nb, fault))
    trouble = False
    if opts.junit:
        try:
            write_page(opts.junit, junit(nbs))
        except OSError as e:
            screen.line(f"--junit {opts.junit}: {e.strerror or e}")
            trouble = True
    skipped = sum(r.state == "skipped" for nb in nbs for r in nb.runs)
    if len(nbs) > 1 or skipped:
        screen.line(f"{clock(seconds)}, {plural(runner.workers, 'worker')}"
                    + (f", {plural(skipped, 'cell')} skipped in notebooks that ran" if skipped else ""))
    counts = {s: sum(nb.state == s for nb in nbs) for s in ("passed", "failed", "skipped")}
    screen.line(", ".join(f"{n} {s}" for s, n in counts.items()))
    return 128 + runner.signal if runner.signal else 1 if failed or trouble else 0


def run_notebooks(opts: Options, screen: Screen) -> int:
    "Run what `opts` ask for and print the report; returns the exit status."
    start = time.monotonic()
    runner = Runner(find_notebooks(opts.paths, opts.settings), opts, screen)
    limits = [f"{clock(opts.cell) if opts.cell else 'no limit'} a cell", f"{clock(opts.notebook)} a notebook"]
    limits += [f"{opts.memory:g} GB a kernel"] if opts.memory else []
    screen.line(screen.paint(f"{plural(len(runner.nbs), 'notebook')}, {plural(runner.workers, 'worker')}; limits: "
                             + ", ".join(limits), "dim"))
    asyncio.run(runner.run())
    return summary(runner, time.monotonic() - start)


def quoted(arg: str) -> str:
    "As text, whatever it looks like: fire would read 01 as a number, and take a path after --save for its value."
    if not re.match(r"--?[a-zA-Z]", arg):
        return arg if arg in ("-", "--") else repr(arg)
    name, given, value = arg.partition("=")
    if name.startswith("--") and name[2:].replace("-", "_") in FLAGS and not given:
        return f"{name}=True"
    return f"{name}={value!r}" if given else arg


def command_line(argv: list[str]) -> Options:
    "What fire makes of `argv`."
    import fire
    return fire.Fire(options, command=[quoted(a) for a in argv], name="run_notebook.py", serialize=lambda result: None)


def main(argv: list[str] | None = None) -> int:
    "The command: returns the exit status."
    for out in (sys.stdout, sys.stderr):
        with suppress(AttributeError, ValueError):
            out.reconfigure(errors="replace")
    if sys.platform == "win32":                            # zmq needs a loop that selects
        asyncio.set_event_loop_policy(asyncio.WindowsSelectorEventLoopPolicy())
    try:
        opts = command_line(sys.argv[1:] if argv is None else argv)
        if not isinstance(opts, Options):                  # fire showed its help
            return 0
        return run_notebooks(opts, Screen())
    except Misuse as e:
        print(f"run_notebook.py: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:                                # who read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


if __name__ == "__main__":
    adopt_orphans()
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)           # the rest takes no time
    end_orphans()
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)                                       # all is ended: spare the interpreter's own slow goodbye
