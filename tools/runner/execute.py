"""Running one notebook's cells in a kernel through nbclient. Heavy: imported late."""
import asyncio
import json
import re
import signal
import time
from argparse import Namespace
from collections.abc import Callable
from contextlib import suppress
from queue import Empty

import nbformat
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete, CellTimeoutError, DeadKernelError
from nbformat.v4 import new_output

from runner.notebook import Fault, Notebook
from runner.process import Kernel, NoStart
from runner.report import Screen
from runner.save import tidy_outputs
from runner.text import cut, plain, without_frames

START_SECONDS = 120                                        # for a kernel to answer; busy machines are slow
OUTPUT_SECONDS = 60                                        # for the rest of a cell's output, when its reply is there
MANY = 200                                                 # outputs of a cell: so many first, so many last
NOTHING = new_output("stream", name="stdout", text="")
GRACE = 3                                                  # seconds for a cell to react to an interrupt


class Channel(AsyncZMQSocketChannel):
    """Lets `heard` look at each message. It looks again a few times a second: with zmq.asyncio a send, such as
    nbclient's answer to an Output widget, can swallow the wake-up of a receive that is waiting on the same socket."""
    heard: Callable[[dict], None] = staticmethod(lambda msg: None)

    async def get_msg(self, timeout: float | None = None) -> dict:
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while True:
            try:
                msg = await super().get_msg(timeout=max(0, min(0.2, until - time.monotonic())))
                self.heard(msg)
                return msg
            except Exception as e:
                if not self.is_alive():                    # nbclient leaves the reader of a cell that took too long
                    raise asyncio.CancelledError from None
                if not isinstance(e, Empty) or time.monotonic() >= until:
                    raise


class Client(AsyncKernelClient):
    "Whether a kernel is alive is asked of its process."
    kernel: Kernel

    async def is_alive(self) -> bool:
        return self.kernel.poll() is None


class Cells(NotebookClient):
    """nbclient's execution of cells, with our limits and with eyes on the process: all by nbclient's public names.

    `opts` holds the limits: seconds for a `cell` and for the `notebook`, GB of `memory`; 0 is none. With `stream` what
    cells print goes to `screen` as it comes."""
    kc: Client

    def __init__(self, book: Notebook, kernel: Kernel, opts: Namespace, screen: Screen):
        nb = nbformat.from_dict({"metadata": {}, "cells": [
            {"cell_type": c["cell_type"], "source": book.source(c), "outputs": [],
             "metadata": {"tags": c.get("metadata", {}).get("tags", [])}}
            for c in book.cells]})
        super().__init__(nb, record_timing=False, allow_errors=True, iopub_timeout=OUTPUT_SECONDS,
                         timeout_func=self.seconds_left, on_cell_executed=self.replied)
        self.book, self.kernel, self.opts, self.screen = book, kernel, opts, screen
        self.until, self.whole, self.reply = 0.0, False, {}
        self.done: dict[str, int] = {}                     # the request of a cell that has run -> its index
        self.log.disabled = True
        self.kc = Client(context=zmq.asyncio.Context.instance(), shell_channel_class=Channel,
                         iopub_channel_class=Channel)
        self.kc.kernel = kernel

    async def run(self) -> None:
        "Run the cells to the end or to the first fault; results go into the notebook. Raises `NoStart`."
        watch, start = None, time.monotonic()
        try:
            await self.connect()
            watch = asyncio.create_task(self.watch_memory()) if self.opts.memory else None
            self.until = time.monotonic() + self.opts.notebook if self.opts.notebook else 0
            for index, cell in enumerate(self.nb.cells):
                if cell.cell_type == "code" and not await self.one(index, cell):
                    break
        finally:
            self.book.seconds = time.monotonic() - start
            if watch:
                watch.cancel()
            if self.kc.channels_running:
                self.kc.shutdown()                         # it ends by itself
                self.kc.stop_channels()
            for run in self.book.runs:                     # only now: later cells may update what earlier ones show
                cell = self.nb.cells[run.number - 1]
                self.book.executed[run.number - 1] = tidy_outputs(cell.outputs), cell.get("execution_count")
            self.nb.cells = []                             # this lives on in cycles for a while: not its outputs

    async def connect(self) -> None:
        "Wait until the kernel answers on both channels."
        until = time.monotonic() + START_SECONDS
        while not (self.kc.channels_running and await self.answered()):
            with suppress(OSError, ValueError):            # the file is not there yet, or half of it
                if not self.kc.channels_running:
                    self.kc.load_connection_info(json.loads((self.kernel.folder / "kernel.json").read_bytes()))
                    self.kc.start_channels(stdin=False, hb=False)
                    self.kc.iopub_channel.heard = self.late
            if (gone := self.kernel.poll() is not None) or time.monotonic() > until:
                why = ending(self.kernel.status()) if gone else f"it did not answer within {START_SECONDS} s"
                words = plain(self.kernel.read("log")).strip().splitlines()
                raise NoStart(": ".join(["the kernel did not start", why, *words[-1:]]))
            await asyncio.sleep(0.01)

    async def answered(self) -> bool:
        msg_id = self.kc.kernel_info()
        with suppress(Empty):
            for channel in (self.kc.shell_channel, self.kc.iopub_channel):
                while (await channel.get_msg(timeout=1))["parent_header"].get("msg_id") != msg_id:
                    pass
            return True
        return False

    async def one(self, index: int, cell) -> bool:
        "Run one code cell; returns whether to go on."
        if index in self.book.skips or not cell.source.strip():
            return True
        run, start = self.book.cell_run(index), time.monotonic()
        self.book.runs.append(run)
        try:
            await self.send(cell, index)
            self.book.numbers[self.reply.get("execution_count")] = run.number
            fault = fault_in(self.reply, cell, self.book.numbers) or (Fault(self.look()) if self.look() else None)
        except (CellTimeoutError, DeadKernelError) as e:
            line, stack = self.kernel.last_stack()
            fault = Fault(self.too_long() if isinstance(e, CellTimeoutError) else self.death(), line, stack)
        run.seconds = time.monotonic() - start
        if fault:
            fault.run = run
            self.book.faults.append(fault)
        return not fault

    def too_long(self) -> str:
        if self.whole:
            return f"the notebook took longer than its {self.opts.notebook:g} s (notebook_timeout in settings.ini)"
        return f"the cell took longer than its {self.opts.cell:g} s (--timeout)"

    def death(self) -> str:
        status = self.kernel.status()
        return self.kernel.reason or f"the kernel {'ended: ' if status >= 0 else 'was '}{ending(status)}"

    async def send(self, cell, index: int) -> None:
        "Execute a cell; the kernel's `reply` is kept. Raises `CellTimeoutError` or `DeadKernelError`."
        try:
            await self.async_execute_cell(cell, index)
        except DeadKernelError:
            if self.kernel.poll() is None:                 # what nbclient makes of being cancelled
                raise asyncio.CancelledError from None
            await self.listen(cell, index, 0.1)
            raise
        except CellTimeoutError:                           # it is asked to stop, so that it tells where it was
            self.kernel.note_stack()
            await asyncio.sleep(0.1)
            self.kernel.interrupt()
            await self.listen(cell, index, GRACE)
            raise

    async def listen(self, cell, index: int, quiet: float) -> None:
        "Take what the kernel still says, until the cell ends or nothing came for so long."
        with suppress(Exception):                          # Empty, CellExecutionComplete, or half a message: no more
            async with asyncio.timeout(GRACE):
                while True:
                    self.process_message(await self.kc.iopub_channel.get_msg(timeout=quiet), cell, index)

    async def watch_memory(self) -> None:
        "End the kernel when it holds more than it may."
        while not self.look():
            await asyncio.sleep(0.1)
        self.kernel.note_stack()
        await asyncio.sleep(0.05)
        self.kernel.terminate()

    def look(self) -> str:
        "The reason to end the kernel, if it holds too much."
        limit = self.opts.memory
        if limit and not self.kernel.reason and (held := self.kernel.memory()) > limit * 1e9:
            self.kernel.reason = f"it held {held / 1e9:.2f} GB, more than its {limit:g} GB (--memory): " \
                "let it hold less at a time (del, smaller batches), or allow more"
        return self.kernel.reason

    def replied(self, cell, cell_index, execute_reply) -> None:
        self.reply = execute_reply["content"]
        self.done[execute_reply["parent_header"]["msg_id"]] = cell_index

    def late(self, msg: dict) -> None:
        "What a thread of an earlier cell says belongs to that cell; nbclient listens only to the running one."
        with suppress(Exception, CellExecutionComplete):
            index = self.done[msg["parent_header"]["msg_id"]]
            self.process_message(msg, self.nb.cells[index], index)

    def seconds_left(self, cell) -> float | None:
        left = self.until - time.monotonic() if self.until else float("inf")
        limit = self.opts.cell or float("inf")
        self.whole = left < limit                          # which of the two limits is the one that counts
        return max(0.01, min(left, limit)) if min(left, limit) < float("inf") else None

    def process_message(self, msg, cell, cell_index):
        "A message nbclient cannot digest is dropped: it must not leave the cell waiting for its end."
        try:
            return super().process_message(msg, cell, cell_index)
        except CellExecutionComplete:
            raise
        except Exception:
            return None

    def output(self, outs, msg, display_id, cell_index):
        content = msg["content"]
        if self.opts.stream:
            shown = content.get("data", {}).get("text/plain")
            self.screen.stream(self.book, cell_index, content.get("text") or (f"{shown}\n" if shown else ""))
        if self.output_hook_stack[msg["parent_header"].get("msg_id")]:             # a widget takes it
            return super().output(outs, msg, display_id, cell_index)
        for out in outs[:-3:-1] if msg["msg_type"] == "stream" and not self.clear_before_next_output else ():
            if out["output_type"] != "stream":
                break
            if out["name"] == content["name"]:             # an output a message would be many
                out["text"] = cut(out["text"] + content["text"])
                return out
        if len(outs) >= 2 * MANY:                          # they keep their places, by which displays are known
            outs[-MANY] = NOTHING
            left_out = f"… {len(outs) - 2 * MANY + 1:,} outputs left out …\n"
            outs[MANY] = new_output("stream", name="stdout", text=left_out)
        return super().output(outs, msg, display_id, cell_index)


def fault_in(said: dict, cell, numbers: dict) -> Fault | None:
    "The fault in a kernel's reply, if any; `numbers` are those of the cells by the kernel's own count."
    must_raise = "raises-exception" in cell.metadata.get("tags", [])
    if any(p.get("source") == "ask_exit" for p in said.get("payload", [])):
        return Fault("exit() ends the kernel: a notebook runs to its end")
    shown = said.get("shown")                              # an error, also one that was not raised
    if said.get("status") == "ok" and not shown:
        return Fault("it is tagged raises-exception, and did not raise") if must_raise else None
    if must_raise:
        return None
    error = shown or said
    name, value = error.get("ename", "Error"), plain(str(error.get("evalue", ""))).strip()
    value = re.sub(r" \(\d+\.py, line \d+\)$", "", value)  # a syntax error's: the cell is named anyway
    cause = f"{name}: {value}" if value else name
    if name == "StdinNotImplementedError":
        cause = "asks for input, and nobody is there to answer (input(), getpass() or a debugger)"
    elif name == "SystemExit":
        cause = f"SystemExit: {value} (sys.exit ends nothing in a notebook: stop by raising an error)"
    frames = without_frames(error.get("frames") or plain("\n".join(map(str, error.get("traceback", [])))))
    frames = re.sub(r'File "cell In\[(\d+)\]"', lambda m: f"Cell {numbers.get(int(m[1]), '?')}", frames)
    line = error.get("line") or None
    if line:
        line += len(cell.source) - len(cell.source.lstrip("\n"))   # IPython drops leading blank lines
    return Fault(cause, line=line, traceback=frames)


def ending(status: int) -> str:
    "An exit status in words."
    if status >= 0:
        return f"exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    why = {"SIGKILL": ", as the system does when memory runs out", "SIGSEGV": ", a crash in compiled code",
           "SIGABRT": ", an abort in compiled code"}.get(name, "")
    return f"killed by {name}{why}"
