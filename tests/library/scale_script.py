"""What a launcher starts: a fit with checkpoints, in which workers can be killed, or hang, at given batches.

python scale_script.py FOLDER [kill|hang RANK BATCH]…; files FOLDER/done-0, done-1 … say that it has happened.
"""
import os
import signal
import sys
import time
from pathlib import Path

import torch
from scale_jobs import learner

from exp.nb09 import Callback
from exp.nb13b import CheckpointCB
from exp.nb16 import AccelerateCB


class Misfortune(Callback):
    "In training batch `batch` of all, counted from 0, worker `rank` is killed, or hangs; once."
    kept = ("n",)

    def __init__(self, what, rank, batch, done):
        self.what, self.rank, self.batch, self.done, self.n = what, int(rank), int(batch), done, 0

    def after_backward(self, learn):
        self.n += 1
        if int(os.environ.get("RANK", 0)) != self.rank or self.n <= self.batch or self.done.exists():
            return
        self.done.write_text(f"{time.time()} {os.getpid()}")
        if self.what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)


if __name__ == "__main__":
    folder, *what = sys.argv[1:] if sys.argv[2:] else [*sys.argv[1:], "kill", -1, 0]
    folder = Path(folder)
    accelerate = AccelerateCB(timeout=float(os.environ.get("TIMEOUT", 60)))
    with (folder/f"pids-{os.environ.get('RANK', 0)}").open("a") as f:
        f.write(f"{os.getpid()} {time.time()}\n")
    cbs = [accelerate, CheckpointCB(folder/"fit.pt", every=2, resume=True),
           *[Misfortune(*what[i:i + 3], folder/f"done-{i//3}") for i in range(0, len(what), 3)]]
    learn = learner(cbs=cbs, n=48)
    learn.fit(3)
    if accelerate.first:
        print("resumed", cbs[1].resumed, "of", accelerate.world)
        rows = [{k: v for k, v in r.items() if k != "time"} for r in learn.metrics.history]
        torch.save({"weights": learn.model.state_dict(), "rows": rows}, folder/"end.pt")
    accelerate.accelerator.end_training()
