"""What the runner starts for each notebook: `python launch.py FOLDER RUNNER_PID ROOT…`, the kernel and its supervisor.

On POSIX this process stays as a small supervisor and forks the kernel. It sees the kernel and everything the kernel
ever starts die (on Linux even what was daemonised), also when the runner itself is killed.
"""
import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])     # tools; the kernel takes it out again

from runner.children import DEATH_SIGNAL, LINUX, SUBREAPER, kill_children, prctl, reap  # noqa: E402

if os.name == "posix":
    WAKERS = {signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM}
    DEAF = {signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1}


def supervise(folder: str, runner: int) -> None:
    "Fork: returns in the kernel's process, never in the supervisor's."
    for s in DEAF:
        signal.signal(s, signal.SIG_IGN)
    for s in WAKERS:
        signal.signal(s, lambda *_: None)                  # they are waited for; some systems drop what has no handler
    signal.pthread_sigmask(signal.SIG_BLOCK, WAKERS)
    prctl(SUBREAPER, 1)
    prctl(DEATH_SIGNAL, signal.SIGHUP)
    kernel = os.fork()
    if kernel == 0:
        be_supervised()
        return
    signal.setitimer(signal.ITIMER_REAL, 1, 1)             # where the runner's death is not told: look once a second
    ended, woken = {}, None
    while kernel not in ended and woken not in (signal.SIGTERM, signal.SIGHUP) and os.getppid() == runner:
        woken = signal.sigwait(WAKERS)
        reap(ended)
    kill_children(ended, group=not LINUX)
    if woken == signal.SIGHUP or os.getppid() != runner:   # nobody else will do it
        import shutil
        shutil.rmtree(folder, ignore_errors=True)
    leave(ended.get(kernel))


def be_supervised() -> None:
    "In the forked kernel: signals as in any program, and death with the supervisor."
    for s in DEAF | WAKERS:
        signal.signal(s, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    prctl(DEATH_SIGNAL, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, WAKERS)


def leave(status: int | None) -> None:
    "End this process the way the kernel ended, so that the runner sees a signal as a signal."
    if status is not None and os.WIFSIGNALED(status):
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sig = os.WTERMSIG(status)
        if sig not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(sig, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {sig})
        os.kill(os.getpid(), sig)
    os._exit(os.WEXITSTATUS(status) if status is not None else 143)


def watch_stdin() -> None:
    "Where there is no supervisor (Windows): the runner holds the other end of stdin; when it closes, it is gone."
    import threading
    fd, leave = os.dup(0), os._exit
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)

    def wait():
        while os.read(fd, 1):
            pass
        leave(143)
    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    if os.name == "posix":
        supervise(sys.argv[1], int(sys.argv[2]))
    else:
        watch_stdin()
    from runner.kernel import be_kernel
    be_kernel(Path(sys.argv[1]), sys.argv[3:])
