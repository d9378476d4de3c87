"""Seeing every process gone that a notebook started. The runner starts `python supervisor.py FOLDER RUNNER_PID ROOT…`.

On POSIX that process stays as a small supervisor and forks the kernel. It sees the kernel and everything the kernel
ever starts die (on Linux even what was daemonised), also when the runner itself is killed.
"""
import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

LINUX = sys.platform.startswith("linux")
DEATH_SIGNAL, SUBREAPER = 1, 36                            # of prctl: told when the parent dies; orphans come to us


def prctl(option: int, value: int) -> None:
    "Linux only, and silently nothing where it is not allowed."
    if LINUX:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def reap(ended: dict[int, int]) -> bool:
    "Put the wait status of each child that has ended into `ended`; returns whether there are more children."
    try:
        while (child := os.waitpid(-1, os.WNOHANG))[0]:
            ended[child[0]] = child[1]
    except ChildProcessError:
        return False
    return True


def kill_children(ended: dict[int, int]) -> None:
    "Kill every process below this one until nothing is left, and `reap` those that end as children of it."
    until = time.monotonic() + 10
    while reap(ended) and time.monotonic() < until:
        import psutil
        for p in psutil.Process().children(recursive=True):
            with suppress(OSError):
                os.kill(p.pid, signal.SIGKILL)
        time.sleep(0.005)


def supervise(folder: str, runner: int) -> None:
    "Fork: returns in the kernel's process, never in the supervisor's."
    wakers = {signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM}
    deaf = {signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1}
    for s in deaf | wakers:                                # wakers are waited for; some systems drop the unhandled
        signal.signal(s, signal.SIG_IGN if s in deaf else lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, wakers)
    prctl(SUBREAPER, 1)
    prctl(DEATH_SIGNAL, signal.SIGHUP)
    kernel = os.fork()
    if kernel == 0:                                        # signals as in any program, and death with the supervisor
        for s in deaf | wakers:
            signal.signal(s, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        prctl(DEATH_SIGNAL, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wakers)
        return
    signal.setitimer(signal.ITIMER_REAL, 1, 1)             # where the runner's death is not told: look once a second
    ended, woken = {}, None
    while kernel not in ended and woken not in (signal.SIGTERM, signal.SIGHUP) and os.getppid() == runner:
        woken = signal.sigwait(wakers)
        reap(ended)
    kill_children(ended)
    if kernel in ended:                                    # the runner reads there how it ended
        with suppress(OSError):
            Path(folder, "status").write_text(str(os.waitstatus_to_exitcode(ended[kernel])))
    if woken == signal.SIGHUP or os.getppid() != runner:   # nobody else will do the rest
        import shutil
        shutil.rmtree(folder, ignore_errors=True)
        if not LINUX:
            os.killpg(0, signal.SIGKILL)
    os._exit(0)


def end_with(runner: int) -> None:
    "Where there is no supervisor (Windows): the kernel ends when the runner has."
    import psutil
    with suppress(psutil.NoSuchProcess):
        psutil.Process(runner).wait()
    os._exit(143)


if __name__ == "__main__":
    if os.name == "posix":
        supervise(sys.argv[1], int(sys.argv[2]))
    else:
        import threading
        threading.Thread(target=end_with, args=[int(sys.argv[2])], daemon=True).start()
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # tools; the kernel takes it out again
    from runner.kernel import be_kernel
    be_kernel(Path(sys.argv[1]), sys.argv[3:])
