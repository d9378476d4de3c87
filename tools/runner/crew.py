"""Running many notebooks: some at a time, the next kernels starting meanwhile; nothing is left, however it ends."""
import asyncio
import json
import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

from common import Misuse, atomic_write, find_settings

from runner.children import LINUX, kill_children
from runner.find import cores, find_notebooks, has_gpu, label, mentions_cuda
from runner.judge import Limits
from runner.notebook import BadFile, Fault, Notebook
from runner.page import make_page
from runner.process import Kernel, sweep
from runner.report import failed, junit, report, slowest, verdict
from runner.save import NotSaved, save
from runner.screen import Progress, Screen
from runner.strays import Strays
from runner.text import clock, plural


class Crew:
    "Runs notebooks as `opts`, the command line, asks for."

    def __init__(self, paths: list[Path], opts: SimpleNamespace, screen: Screen):
        self.opts, self.screen = opts, screen
        self.nbs = [Notebook(p, label(p)) for p in paths]
        self.stems = Counter(p.stem for p in paths)
        self.cuda = self.decide_cuda(paths)
        self.workers = min(opts.workers or (1 if self.cuda else cores()), len(paths))
        self.threads = max(1, cores() // self.workers) if self.workers > 1 else None
        self.limits = Limits(opts.cell, opts.notebook, opts.memory)
        # a notebook that runs alone runs beside nothing; else kernels start and end while others run
        self.up = asyncio.Semaphore(1 if self.workers == 1 else 2 * self.workers)
        self.at_work = asyncio.Semaphore(self.workers)
        self.kernels: set[Kernel] = set()
        self.tasks: set[asyncio.Task] = set()              # those that may be stopped
        self.progress = Progress(screen, len(self.nbs))
        self.stopped, self.signal = "", 0

    def decide_cuda(self, paths: list[Path]) -> bool:
        "Looks for a GPU only where the answer matters."
        if self.opts.device == "cuda" and not has_gpu():
            raise Misuse("--device cuda: torch sees no CUDA device here")
        matters = self.opts.workers is None and len(paths) > 1 or any(map(mentions_cuda, paths))
        return self.opts.device == "cuda" or self.opts.device == "auto" and matters and has_gpu()

    # -- one notebook

    async def one(self, nb: Notebook) -> None:
        "From reading a notebook to its verdict."
        async with self.up:
            kernel = strays = None
            try:
                nb.read(self.opts.slow, self.cuda)
                if nb.has_code:
                    kernel, strays = self.start_kernel(nb)
                    await asyncio.sleep(0)                 # the others start theirs, too
                    async with self.at_work:
                        await self.run_cells(nb, kernel)
            except BadFile as e:
                nb.faults.append(Fault(str(e)))
            except OSError as e:
                nb.faults.append(Fault(f"the kernel could not be started: {e.strerror or e}"))
            except Exception as e:                         # the others still run
                nb.faults.append(own_fault(e))
            self.tasks.discard(asyncio.current_task())     # what has run is judged, saved and reported
            await self.finish(nb, kernel, strays)

    def start_kernel(self, nb: Notebook) -> tuple[Kernel, Strays]:
        folder = nb.path.parent
        root = find_settings(folder).root or self.opts.settings.root
        roots = [root, folder] if root and root != folder and nb.path.is_relative_to(root) else [folder]
        kernel = Kernel(nb.path, root, self.threads, self.opts.device, roots)
        self.kernels.add(kernel)
        return kernel, Strays(kernel, nb.path, roots, self.opts.settings.values.get("out_path", "_out"))

    async def run_cells(self, nb: Notebook, kernel: Kernel) -> None:
        from runner.execute import NoStart, Run            # while the first kernels start
        start = time.monotonic()
        shown = self.progress.running[nb] = [0, len(nb.cells), start]

        def on_cell(number: int) -> None:
            shown[0] = number

        def show(index: int, text: str) -> None:
            self.screen.stream(nb, index, text)
        try:
            await Run(nb, kernel, self.limits, on_cell, show if self.opts.stream else None).execute()
        except NoStart as e:
            nb.faults.append(Fault(str(e)))
        finally:
            del self.progress.running[nb]
            nb.seconds = time.monotonic() - start

    async def finish(self, nb: Notebook, kernel: Kernel | None, strays: Strays | None) -> None:
        "End the kernel, judge what it left, save, and report."
        try:
            if kernel and strays:
                await kernel.end(grace=0 if nb.faults else 5)
                self.judge_files(nb, strays)
                self.drop(kernel)
                if self.opts.save and not nb.faults:
                    nb.notes += ["saved"] if save(nb) else ["outputs unchanged"]
            if self.opts.html and nb.cells:
                await self.write_page(nb)
        except NotSaved as e:
            nb.faults.append(Fault(f"{e}; {self.keep(nb)}"))
        except Exception as e:
            nb.faults.append(own_fault(e))
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

    def judge_files(self, nb: Notebook, strays: Strays) -> None:
        "Leaving files behind is a fault, and so is writing to one's own."
        own, found = strays.found()
        if own:
            nb.faults.append(Fault("it writes to its own file while it runs; only --save may do that"))
        if found:
            out = self.opts.settings.values.get("out_path", "_out")
            nb.faults.append(Fault(f"it leaves files outside {out}/: " + ", ".join(found[:10])
                                   + (" …" if len(found) > 10 else "")))

    def name_for(self, nb: Notebook) -> str:
        "What a file made from a notebook is called, where those of all notebooks lie together."
        return nb.path.stem if self.stems[nb.path.stem] == 1 else f"{nb.path.parent.name}_{nb.path.stem}"

    def keep(self, nb: Notebook) -> str:
        "Write a notebook that could not be saved to where its outputs are not lost; returns what to say."
        settings = find_settings(nb.path.parent)
        folder = settings.path("out_path", "_out") if settings.root else nb.path.parent / "_out"
        file = folder.absolute() / f"{self.name_for(nb)}.executed.ipynb"
        try:
            write_file(file, json.dumps(nb.with_outputs(counts=False), indent=1).encode() + b"\n")
        except (OSError, ValueError) as e:
            return f"run it again (nor could {label(file)} be written: {getattr(e, 'strerror', None) or e})"
        return f"its outputs are in {label(file)}"

    async def write_page(self, nb: Notebook) -> None:
        "Write the executed notebook as a page into the --html folder."
        file = self.opts.html / f"{self.name_for(nb)}.html"
        try:
            page, why = await asyncio.to_thread(make_page, nb)
            if page:
                write_file(file, page)
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

    async def run(self) -> None:
        "Run all; afterwards `nbs` hold what became of them."
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            with suppress(NotImplementedError, AttributeError, ValueError):
                signum = getattr(signal, name)
                loop.add_signal_handler(signum, self.stop, f"stopped by {name}", signum)
        ticker = asyncio.create_task(self.tick())
        tasks = [asyncio.create_task(self.one(nb)) for nb in self.nbs]
        self.tasks = set(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)
        ticker.cancel()
        await asyncio.gather(*(k.end() for k in self.kernels), return_exceptions=True)
        for kernel in list(self.kernels):
            self.drop(kernel)
        sweep()
        self.screen.status("")

    async def tick(self) -> None:
        while True:
            self.progress.draw()
            await asyncio.sleep(0.2)

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

    def summary(self, seconds: float) -> int:
        "Print what closes a run, write the JUnit file, and return the exit status."
        screen, nbs = self.screen, self.nbs
        for nb in nbs:
            nb.why = self.stopped
            if nb.state == "skipped":
                screen.line(verdict(nb, screen))
        if self.opts.durations:
            screen.line(slowest(nbs, self.opts.durations))
        for nb, fault in ((nb, fault) for nb in nbs for fault in nb.faults if len(nbs) > 1):
            screen.line(failed(nb, fault, screen))
        trouble = any(nb.faults for nb in nbs)
        if self.opts.junit:
            try:
                write_file(self.opts.junit, junit(nbs))
            except OSError as e:
                screen.line(f"--junit {self.opts.junit}: {e.strerror or e}")
                trouble = True
        skipped = sum(r.state == "skipped" for nb in nbs for r in nb.runs)
        if len(nbs) > 1 or skipped:
            screen.line(f"{clock(seconds)}, {plural(self.workers, 'worker')}"
                        + (f", {plural(skipped, 'cell')} skipped in notebooks that ran" if skipped else ""))
        states = [nb.state for nb in nbs]
        screen.line(", ".join(f"{states.count(s)} {s}" for s in ("passed", "failed", "skipped")))
        return 128 + self.signal if self.signal else int(trouble)


def run_notebooks(opts: SimpleNamespace) -> int:
    "Run what `opts` ask for and print the report; returns the exit status."
    start, screen = time.monotonic(), Screen()
    crew = Crew(find_notebooks(opts.paths, opts.settings), opts, screen)
    limits = [f"{clock(opts.cell) if opts.cell else 'no limit'} a cell", f"{clock(opts.notebook)} a notebook"]
    limits += [f"{opts.memory:g} GB a kernel"] if opts.memory else []
    screen.line(screen.paint(f"{plural(len(crew.nbs), 'notebook')}, {plural(crew.workers, 'worker')}; limits: "
                             + ", ".join(limits), "dim"))
    asyncio.run(crew.run())
    return crew.summary(time.monotonic() - start)


def end_orphans() -> None:
    "The second line of defence on Linux: what a killed supervisor left has come to this process."
    if LINUX:
        kill_children({})


def own_fault(e: Exception) -> Fault:
    "A fault of the runner's own, with the place to mend."
    tb = e.__traceback__
    while tb and tb.tb_next:
        tb = tb.tb_next
    where = f"{Path(tb.tb_frame.f_code.co_filename).name}:{tb.tb_lineno}" if tb else "?"
    return Fault(f"the runner itself failed, {where}: {type(e).__name__}: {e}")


def write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, data)
