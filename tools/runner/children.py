"""Seeing every process gone that was started below this one: used by the runner, and by each kernel's supervisor."""
import os
import signal
import sys
import time

LINUX = sys.platform.startswith("linux")
DEATH_SIGNAL, SUBREAPER = 1, 36                            # of prctl: told when the parent dies; orphans come to us


def prctl(option: int, value: int) -> None:
    "Linux only, and silently nothing where it is not allowed."
    if LINUX:
        try:
            import ctypes
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)
        except (OSError, AttributeError, ImportError):
            pass


def reap(ended: dict[int, int]) -> bool:
    "Put the wait status of each child that has ended into `ended`; returns whether there are more children."
    try:
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended[child[0]] = child[1]
    except ChildProcessError:
        return False
    return True


def kill_children(ended: dict[int, int], group: bool = False) -> None:
    "Kill every process below this one, and with `group` those of its process group, until nothing is left; `reap` them."
    until = time.monotonic() + 10
    while (reap(ended) or group and below(group)) and time.monotonic() < until:
        for pid in below(group):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        time.sleep(0.005)


def below(group: bool) -> list[int]:
    import psutil
    found = [p.pid for p in psutil.Process().children(recursive=True)]
    for pid in psutil.pids() if group else ():
        try:
            if os.getpgid(pid) == os.getpgrp() and pid != os.getpid():
                found.append(pid)
        except OSError:
            pass
    return found
