"""Running many notebooks: some at a time, the next kernels starting meanwhile; nothing is left, however it ends."""
import asyncio
import json
import signal
import time
import traceback
from argparse import Namespace
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from common import BadFile, Change, Misuse, contents, find_settings, plural, write_all

from runner.find import cores, find_notebooks, has_gpu, label
from runner.notebook import Fault, Notebook
from runner.process import Kernel, NoStart, sweep
from runner.report import Screen, failed, report, slowest, verdict
from runner.save import NotSaved, make_page, save
from runner.text import clock, visible


def names_for(paths: list[Path]) -> dict[Path, str]:
    "What a file made from each notebook is called, where those of all lie together: no two are the same."
    stems, names = Counter(p.stem for p in paths), dict[Path, str]()
    for p in paths:
        base = name = p.stem if stems[p.stem] == 1 else f"{p.parent.name}_{p.stem}"
        taken, n = {s.lower() for s in names.values()}, 1  # some systems make no difference between a and A
        while name.lower() in taken:
            name = f"{base}_{(n := n + 1)}"
        names[p] = name
    return names


class Crew:
    "Runs notebooks as `opts`, the command line, asks for."

    def __init__(self, paths: list[Path], opts: Namespace, screen: Screen):
        self.opts, self.screen = opts, screen
        self.nbs, self.names = [Notebook(p, label(p)) for p in paths], names_for(paths)
        self.cuda = has_gpu(opts.device)
        if opts.device == "cuda" and not self.cuda:
            raise Misuse("--device cuda: torch sees no CUDA device here")
        self.workers = min(opts.workers or (1 if self.cuda else cores()), len(paths))
        self.threads = max(1, cores() // self.workers) if self.workers > 1 else None
        self.at_work = asyncio.Semaphore(self.workers)
        self.tasks: set[asyncio.Task] = set()              # those that may be stopped
        self.start, self.stopped, self.signal = time.monotonic(), "", 0

    async def one(self, nb: Notebook) -> None:
        "From reading a notebook to its verdict; a kernel is gone at its end, whatever that is."
        async with self.at_work:
            kernel = None
            try:
                nb.read(self.opts.slow, self.cuda)
                if nb.has_code:
                    kernel = Kernel(nb.path, self.opts, self.threads)
                    from runner.execute import Cells  # while the first kernels start
                    await Cells(nb, kernel, self.opts, self.screen).run()
                self.tasks.discard(asyncio.current_task())  # what has run is judged, saved and reported
                await self.finish(nb, kernel)
            except (BadFile, Misuse, NoStart) as e:
                nb.faults.append(Fault(str(e)))
            except Exception as e:                         # the others still run
                text = "".join(traceback.format_exception(e))
                nb.faults.append(Fault(f"the runner itself failed: {type(e).__name__}: {e}", traceback=text))
            finally:
                if kernel:
                    await kernel.end()
                    kernel.clean()
            self.tell(nb)

    async def finish(self, nb: Notebook, kernel: Kernel | None) -> None:
        "End the kernel, judge what it left, save, and make a page."
        if kernel:
            await kernel.end(grace=0 if nb.faults else 5)
            nb.faults += [Fault(cause) for cause in kernel.strays.causes()]
            nb.notes += said(kernel.strays.heard, nb.numbers)
            if self.opts.save and not nb.faults:
                self.save(nb)
        if self.opts.html and nb.cells:
            file = self.opts.html / f"{self.names[nb.path]}.html"
            page, why = await asyncio.to_thread(make_page, nb)
            if why := why or write_file(file, page):
                nb.faults.append(Fault(f"no page {label(file)}: {why}"))
            else:
                nb.notes.append(f"page: {label(file)}")

    def save(self, nb: Notebook) -> None:
        "Into its file, or to where the outputs are not lost."
        try:
            nb.notes += ["saved"] if save(nb) else ["outputs unchanged"]
        except NotSaved as e:
            out = find_settings(nb.path.parent).path("out_path", "_out").absolute()
            file = out / f"{self.names[nb.path]}.executed.ipynb"
            why = write_file(file, json.dumps(nb.with_outputs(counts=False), indent=1).encode() + b"\n")
            where = f"its outputs are in {label(file)}" if not why else f"nor could {label(file)} be written: {why}"
            nb.faults.append(Fault(f"{e}; {where}"))

    def tell(self, nb: Notebook) -> None:
        nb.state = "failed" if nb.faults else "passed"
        try:
            for text in [verdict(nb), *(report(nb, fault) for fault in nb.faults)]:
                self.screen.line(text)
            nb.forget()
        except BrokenPipeError:                            # nobody reads any more
            self.stop("stopped: its output is closed")

    async def run(self) -> None:
        "Run all; afterwards `nbs` hold what became of them."
        loop = asyncio.get_running_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signum = getattr(signal, name, None)
            if signum is None or signal.getsignal(signum) is signal.SIG_IGN:        # as after `nohup`
                continue
            try:
                loop.add_signal_handler(signum, self.stop, f"stopped by {name}", signum)
            except NotImplementedError:                    # on Windows, where the loop wakes by itself
                signal.signal(signum, lambda s, _, n=name: loop.call_soon_threadsafe(self.stop, f"stopped by {n}", s))
        tasks = [asyncio.create_task(self.one(nb)) for nb in self.nbs]
        self.tasks = set(tasks)
        await asyncio.gather(*tasks, return_exceptions=True)
        sweep()

    def stop(self, why: str, signum: int = 0) -> None:
        "Start no more, and end what runs."
        self.signal = self.signal or signum
        if not self.stopped:                               # once, or ending a kernel would be cancelled
            self.stopped = why
            for task in self.tasks:
                task.cancel()

    def summary(self) -> int:
        "Print what closes a run, and return the exit status."
        line, nbs, many = self.screen.line, self.nbs, len(self.nbs) > 1
        for nb in nbs:
            if nb.state == "skipped":
                line(f"skipped {nb.label}  ({self.stopped})")
        if self.opts.durations:
            line(slowest(nbs, self.opts.durations))
        faults = [(nb, fault) for nb in nbs for fault in nb.faults]
        for nb, fault in faults if many else ():
            line(failed(nb, fault))
        if (skipped := sum(len(nb.skips) for nb in nbs)) or many:
            line(f"{clock(time.monotonic() - self.start)}, {plural(self.workers, 'worker')}"
                 + (f", {plural(skipped, 'cell')} skipped in notebooks that ran" if skipped else ""))
        states = [nb.state for nb in nbs]
        line(", ".join(f"{states.count(s)} {s}" for s in ("passed", "failed", "skipped")))
        return 128 + self.signal if self.signal else 1 if faults else 0


def run_notebooks(opts: Namespace) -> int:
    "Run what `opts` ask for and print the report; returns the exit status."
    crew = Crew(find_notebooks(opts.paths, opts.settings, opts.importers), opts, Screen())
    limits = [f"{clock(s) if s else 'no limit'} a {k}" for k, s in (("cell", opts.cell), ("notebook", opts.notebook))]
    limits += [f"{opts.memory:g} GB a kernel"] if opts.memory else []
    head = f"{plural(len(crew.nbs), 'notebook')}, {plural(crew.workers, 'worker')}; limits: {', '.join(limits)}"
    crew.screen.line(head)
    asyncio.run(crew.run())
    return crew.summary()


def said(heard: Iterable[str], numbers: dict[int, int]) -> list[str]:
    "What failed in a kernel without being raised, in words: at most five, and how many more."
    rows = [row.partition(" ") for row in heard]
    notes = [f"cell {numbers.get(int(n) if n.isdecimal() else 0, '?')}: {visible(what)}" for n, _, what in rows]
    return notes[:5] + [f"… and {len(notes) - 5} more"] * (len(notes) > 5)


def write_file(path: Path, data: bytes) -> str:
    "Write a file that is asked for; returns why that failed, or nothing."
    try:
        write_all([Change(path, contents(path), data)])
    except OSError as e:
        return e.strerror or str(e)
    return ""
