"""Running one notebook's cells in a kernel through nbclient, and saying what went wrong. Heavy: imported late."""
import asyncio
import json
import re
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from queue import Empty

import nbformat
import zmq.asyncio
from jupyter_client.asynchronous import AsyncKernelClient
from jupyter_client.channels import AsyncZMQSocketChannel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete, CellTimeoutError, DeadKernelError
from runner_notebook import CellRun, Fault, Notebook, plain, tidy_outputs
from runner_process import Kernel

START_SECONDS = 120                                        # for a kernel to answer; busy machines are slow
QUIET = 15                                                 # seconds without output, the reply being there, are its end
GRACE = 3                                                  # seconds for a cell to react to an interrupt
FASTEST = 5e9                                              # bytes a second by which a leak is thought to grow
OUTPUTS = 400                                              # outputs kept of a cell: first and last half
RICH = 40_000_000                                          # characters of rich output kept of a cell


class NoStart(Exception):
    "The kernel did not start; worth another try."


class SteadyChannel(AsyncZMQSocketChannel):
    """Looks again a few times a second: with zmq.asyncio a send, such as nbclient's answers to an Output widget, can
    swallow the wake-up of a receive that is waiting on the same socket. `heard` is when the last message came."""
    heard = 0.0

    async def get_msg(self, timeout: float | None = None) -> dict:
        until = time.monotonic() + (float("inf") if timeout is None else timeout)
        while True:
            try:
                msg = await super().get_msg(timeout=max(0, min(0.2, until - time.monotonic())))
                self.heard = time.monotonic()
                return msg
            except Empty:
                if time.monotonic() >= until:
                    raise


@dataclass
class Limits:
    "Seconds for a cell and for a notebook, GB for a kernel and all it starts; 0 is no limit."
    cell: float = 600
    notebook: float = 1800
    memory: float = 0


class CellClient(NotebookClient):
    "nbclient's execution of cells, with limits in time and size, and eyes on the process."

    def __init__(self, nb, kernel: Kernel, limits: Limits, show=None):
        super().__init__(nb, record_timing=False, iopub_timeout=3600)
        self.kernel, self.limits, self.show = kernel, limits, show
        self.until, self.whole, self.reply = 0.0, False, {}
        self.cut, self.late, self.rich = 0, deque(maxlen=OUTPUTS // 2), 0
        self.log.disabled = True

    async def connect(self) -> None:
        "Wait until the kernel answers; raises `NoStart`."
        file, until = self.kernel.folder / "kernel.json", time.monotonic() + START_SECONDS
        info = None
        while info is None:
            try:
                info = json.loads(file.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                await self._wait_for_start(until)
        self.kc = AsyncKernelClient(context=zmq.asyncio.Context.instance(), shell_channel_class=SteadyChannel)
        self.kc.load_connection_info(info)
        self.kc.start_channels(stdin=False, hb=False)
        while True:                                        # until both channels have brought an answer
            msg_id, answers = self.kc.kernel_info(), 0
            for channel in (self.kc.shell_channel, self.kc.iopub_channel):
                try:
                    while (await channel.get_msg(timeout=1))["parent_header"].get("msg_id") != msg_id:
                        pass
                    answers += 1
                except Empty:
                    break
            if answers == 2:
                break
            await self._wait_for_start(until)
        self.until = time.monotonic() + self.limits.notebook if self.limits.notebook else 0

    async def _wait_for_start(self, until: float) -> None:
        if self.kernel.poll() is not None or time.monotonic() > until:
            why = f"it did not answer within {START_SECONDS} s" if self.kernel.poll() is None else \
                f"it ended: {ending(self.kernel.poll())}"
            words = plain(self.kernel.read("log")).strip().splitlines()
            raise NoStart(f"the kernel did not start: {why}" + (f": {words[-1]}" if words else ""))
        await asyncio.sleep(0.01)

    def disconnect(self) -> None:
        "Close the channels, asking the kernel to end."
        if self.kc:
            self.kc.session.send(self.kc.control_channel.socket,
                                 self.kc.session.msg("shutdown_request", {"restart": False}))
            self.kc.stop_channels()
            self.kc = None

    async def run(self, cell, index: int) -> dict:
        "Execute a cell and return the kernel's reply; raises `CellTimeoutError` or `DeadKernelError`."
        self.reply, self.cut, self.rich = {}, 0, 0
        self.late.clear()
        self.kc.shell_channel.heard = 0.0
        try:
            await self.async_execute_cell(cell, index)
        except DeadKernelError:
            await self._drain(cell, index)
            raise
        finally:
            if self.cut:
                note = f"… {self.cut:,} outputs left out …\n"
                cell.outputs.append(nbformat.v4.new_output("stream", name="stdout", text=note))
            cell.outputs.extend(self.late)
            if not cell.outputs and "outputs" not in cell:
                cell.outputs = []
        return self.reply

    async def _drain(self, cell, index: int) -> None:
        "Take what a kernel sent just before it died."
        try:
            while True:
                self.process_message(await self.kc.iopub_channel.get_msg(timeout=0.1), cell, index)
        except Exception:                                  # Empty, or half a message: there is no more
            pass

    # -- what nbclient asks

    async def _check_raise_for_error(self, cell, cell_index, exec_reply) -> None:
        self.reply = (exec_reply or {}).get("content", {})

    async def _async_check_alive(self) -> None:
        if self.kernel.poll() is not None:
            raise DeadKernelError("")

    async def _async_poll_output_msg(self, parent_msg_id, cell, cell_index) -> None:
        "All of a cell's output, however long that takes on a busy machine, unless the kernel has lost the end of it."
        last = 0.0
        while True:
            try:
                msg = await self.kc.iopub_channel.get_msg(timeout=1)
            except Empty:
                replied = self.kc.shell_channel.heard
                if replied and time.monotonic() - max(last, replied) > QUIET:
                    return
                continue
            last = time.monotonic()
            if msg["msg_type"] == "last_words" and isinstance(msg["content"], dict):
                self.kernel.heard(msg["content"].get("number"))
            try:
                if msg["parent_header"].get("msg_id") == parent_msg_id:
                    self.process_message(msg, cell, cell_index)
            except CellExecutionComplete:
                return

    async def _async_poll_kernel_alive(self) -> None:
        while self.kernel.poll() is None:
            await asyncio.sleep(0.05)
        self.task_poll_for_reply.cancel()

    def _get_timeout(self, cell) -> float | None:
        left = self.until - time.monotonic() if self.until else float("inf")
        cell = self.limits.cell or float("inf")
        self.whole = left < cell                           # which of the two limits is the one that counts
        return max(0.01, min(left, cell)) if min(left, cell) < float("inf") else None

    async def _async_handle_timeout(self, timeout, cell=None) -> None:
        "Ask the cell to stop, so that it tells where it was and ends its output; the kernel is not used any further."
        self.kernel.note_stack()
        await asyncio.sleep(0.1)
        self.kernel.interrupt()
        try:
            await self.kc.shell_channel.get_msg(timeout=GRACE)
            await asyncio.sleep(0.2)
        except Empty:
            pass
        raise CellTimeoutError("")

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
        if self.show:
            shown = content.get("data", {}).get("text/plain")
            self.show(cell_index, content.get("text") or (f"{shown}\n" if shown else ""))
        if msg["msg_type"] == "stream" and outs and not self.late and outs[-1]["output_type"] == "stream" \
                and outs[-1]["name"] == content["name"] and not self.clear_before_next_output:
            outs[-1]["text"] += content["text"]            # the kernel limits their size
            return outs[-1]
        size = sum(len(v) for v in content.get("data", {}).values() if isinstance(v, str))
        if len(outs) < OUTPUTS // 2 and self.rich + size < RICH:
            self.rich += size
            return super().output(outs, msg, display_id, cell_index)
        self.cut += len(self.late) == self.late.maxlen or size > 1_000_000
        if size <= 1_000_000:
            self.late.append(nbformat.v4.output_from_msg(msg))
        return None

    def clear_output(self, outs, msg, cell_index) -> None:
        if not msg["content"].get("wait"):
            self.cut, self.rich = 0, 0
            self.late.clear()
        super().clear_output(outs, msg, cell_index)


def ending(status: int) -> str:
    "An exit status in words."
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = f"signal {-status}"
        why = {"SIGKILL": ", as the system does when memory runs out", "SIGSEGV": ", a crash in compiled code",
               "SIGABRT": ", an abort in compiled code"}.get(name, "")
        return f"killed by {name}{why}"
    return f"exit status {status}"


@dataclass
class Run:
    "One notebook being run."
    nb: Notebook
    kernel: Kernel
    limits: Limits
    on_cell: object = None                                 # called with this run before each cell
    show: object = None                                    # called with (cell index, text) as text arrives
    current: int = 0                                       # number of the running cell
    counts: dict = field(default_factory=dict)             # the kernel's In[n] -> cell number

    async def execute(self) -> None:
        "Run the cells to the end or to the first fault; results go into `nb`. Raises `NoStart`."
        nb = nbformat.from_dict({"metadata": {}, "cells": [
            {"cell_type": c["cell_type"], "metadata": c.get("metadata", {}), "source": self.nb.source(c), "outputs": []}
            for c in self.nb.cells]})
        cells, self.client = nb.cells, CellClient(nb, self.kernel, self.limits, self.show)
        watch = None
        try:
            await self.client.connect()
            watch = asyncio.create_task(self.watch_memory()) if self.limits.memory else None
            for index, cell in enumerate(cells):
                if cell.cell_type == "code" and not await self.one(index, cell):
                    break
            if self.kernel.reason and not self.nb.faults:  # seen only when the last cell was done
                last = [r for r in self.nb.runs if r.state != "skipped"][-1]
                last.state = "failed"
                self.nb.faults.append(Fault(self.kernel.reason, last.cell, last.cell_id))
        finally:
            if watch:
                watch.cancel()
            self.client.disconnect()
            nb.cells = []                                  # the client lives on in cycles for a while: not its outputs

    async def one(self, index: int, cell) -> bool:
        "Run one code cell; returns whether to go on."
        run = CellRun(index + 1, self.nb.cell_id(index), self.nb.title(index))
        reason = self.nb.skips.get(index)
        self.current = index + 1
        if reason or not cell.source.strip():
            run.state, run.reason = ("skipped", reason) if reason else ("passed", "")
            self.nb.runs += [run] if reason else []
            return True
        if self.on_cell:
            self.on_cell(self)
        start, fault = time.monotonic(), None
        try:
            reply = await self.client.run(cell, index)
            self.counts[reply.get("execution_count")] = index + 1
            fault = self.judge(reply, cell) or self.too_much()
        except CellTimeoutError:
            fault = self.too_long()
        except DeadKernelError:
            if self.kernel.poll() is None:                 # what nbclient makes of being cancelled
                raise asyncio.CancelledError from None
            fault = self.died()
        run.seconds = time.monotonic() - start
        self.nb.runs.append(run)
        self.nb.executed[index] = tidy_outputs(cell.outputs), cell.get("execution_count")
        if fault:
            run.state = "failed"
            fault.cell, fault.cell_id, fault.source = index + 1, self.nb.cell_id(index), cell.source
            fault.outputs = self.nb.executed[index][0]
            self.nb.faults.append(fault)
        return not fault

    # -- what went wrong

    def judge(self, reply: dict, cell) -> Fault | None:
        "The fault in a kernel's reply, if any."
        must_raise = "raises-exception" in cell.metadata.get("tags", [])
        if any(p.get("source") == "ask_exit" for p in reply.get("payload", [])):
            return Fault("exit() ends the kernel: a notebook runs to its end")
        if reply.get("status") == "ok":
            return Fault("it is tagged raises-exception, and did not raise") if must_raise else None
        if must_raise:
            return None
        name, value = reply.get("ename", "Error"), plain(str(reply.get("evalue", ""))).strip()
        value = re.sub(r" \(\d+\.py, line \d+\)$", "", value)  # a syntax error's: the cell is named anyway
        cause = f"{name}: {value}" if value else name
        if name == "StdinNotImplementedError":
            cause = "asks for input, and nobody is there to answer (input(), getpass() or a debugger)"
        elif name == "SystemExit":
            cause = f"SystemExit: {value} (sys.exit ends nothing in a notebook: stop by raising an error)"
        return self.located(Fault(cause), reply, cell)

    def located(self, fault: Fault, reply: dict, cell) -> Fault:
        "Add line and traceback, from what the kernel left, or else from what IPython printed."
        try:
            left = json.loads(self.kernel.read("error.json"))
            fault.line, fault.traceback = left["line"] and int(left["line"]), str(left["text"])
        except (ValueError, KeyError, TypeError):
            fault.traceback = plain("\n".join(map(str, reply.get("traceback", []))))
            m = re.search(rf"Cell In\[{reply.get('execution_count')}\], line (\d+)", fault.traceback)
            fault.line = int(m[1]) if m else None
        names = {str(k): v for k, v in self.counts.items()}
        fault.traceback = re.sub(r'File "cell In\[(\d+)\]"', lambda m: f'Cell {names.get(m[1], "?")}', fault.traceback)
        if fault.line:
            fault.line += len(cell.source) - len(cell.source.lstrip("\n"))  # IPython drops leading blank lines
        return fault

    def too_long(self) -> Fault:
        "A time-out, with the line it hung on."
        cause = f"the notebook took longer than its {self.limits.notebook:g} s (notebook_timeout in settings.ini)" \
            if self.client.whole else f"the cell took longer than its {self.limits.cell:g} s (--timeout)"
        line, stack = self.kernel.deadly_line()
        return Fault(cause, line=line, traceback=stack)

    def died(self) -> Fault:
        "A kernel that is gone, with the line that did it where it is known."
        status = self.kernel.poll()
        how = self.kernel.reason or ("the kernel ended: " if status >= 0 else "the kernel was ") + ending(status)
        line, stack = self.kernel.deadly_line()
        return Fault(how, line=line, traceback=stack)

    def too_much(self, held: int | None = None) -> Fault | None:
        "The fault of holding more memory than it may; without `held` of what it holds now, at the end of a cell."
        if not self.limits.memory:
            return None
        held = self.kernel.memory() if held is None else held
        if held <= self.limits.memory * 1e9:
            return None
        return Fault(f"it held {held / 1e9:.2f} GB, more than its {self.limits.memory:g} GB (--memory): "
                     "let it hold less at a time (del, smaller batches), or allow more")

    async def watch_memory(self) -> None:
        "End the kernel when it holds more than it may."
        fault, held = None, 0
        while not fault:
            await asyncio.sleep(min(0.2, max(0.02, (self.limits.memory * 1e9 - held) / FASTEST)))
            held = self.kernel.memory()
            fault = self.too_much(held)
        self.kernel.note_stack()
        await asyncio.sleep(0.05)
        self.kernel.reason = fault.cause
        self.kernel.terminate()
