"""Chapter 16 with real processes: many workers give what one gives, a killed one changes nothing, none is left behind.

What the workers run is in scale_jobs.py and scale_script.py. Each test has a time limit of its own.
"""
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import scale_jobs as jobs
import torch
from conftest import ROOT

from exp.nb12c import TensorLoader
from exp.nb13b import read_checkpoint
from exp.nb16 import Sharded, Workers, launched

HERE = Path(__file__).parent
LIMIT = 240                                                # seconds: a busy machine needs many for a few imports


def free_port() -> int:
    "A port that nobody listens at just now."
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ours() -> list[psutil.Process]:
    "Processes that a test has started, workers and launchers."
    marks = ("scale_script", "spawn_main", "torch.distributed.run", "exp.nb18")
    found = []
    for p in psutil.Process().children(recursive=True):
        try:
            found += [p]*any(m in " ".join(p.cmdline()) for m in marks)
        except psutil.Error:                               # it has just ended
            pass
    return found


@pytest.fixture(autouse=True)
def none_left(request):
    yield
    shared = [p for p in getattr(request.node.module, "POOL", [])]
    left = [p for p in ours() if p.pid not in shared]
    assert not left, left


@pytest.fixture(scope="module")
def two(request):
    workers = Workers(2, timeout=LIMIT)
    request.node.POOL = request.module.POOL = [p.pid for p in workers.procs]
    yield workers
    workers.close()
    request.module.POOL = []


def far(a: dict, b: dict) -> float:
    "The largest difference between two results, in weights."
    return max((x - y).abs().max().item() for x, y in zip(a["weights"], b["weights"], strict=True))


def alone(kind, n, bs, norm=False, epochs=3, fits=1, **kwargs) -> dict:
    learn = jobs.learner(kind, n, bs, norm, **kwargs)
    for _ in range(fits):
        learn.fit(epochs)
    return jobs.results(learn)


# -- equalities

@pytest.mark.parametrize("kind", ["tensors", "get_dls", "torch"])
@pytest.mark.parametrize(("n", "norm"), [(48, False), (53, True)])
def test_two_workers_train_what_one_does(two, kind, n, norm):
    "Twice in a row, the second time with an uneven last batch and a norm: weights to 1e-12, metrics to float32."
    first, second = two.run(jobs.train, kind, n, 8, norm, 1, 3, 2)
    assert far(first, second) == 0 and first["rows"] == second["rows"]
    one = alone(kind, n, 8, norm, fits=2)
    assert far(first, one) < 1e-12
    for a, b in zip(first["rows"], one["rows"], strict=True):
        assert a == pytest.approx(b, abs=1e-7)


def test_fits_without_validation_and_with_dropout_can_follow_one_another(two):
    "Uneven parts draw unlike numbers, and norms count unlike statistics: afterwards all have the first worker's."
    for a, b in [two.run(jobs.train_twice)]:
        assert far(a, b) == 0


def test_weights_that_a_callback_sets_by_its_part_are_the_first_workers(two):
    a, b = two.run(jobs.weights_by_the_data)
    assert far(a, b) == 0


def test_workers_have_one_thread_each_also_under_accelerate(two):
    assert two.run(jobs.threads) == [1, 1]


@pytest.mark.parametrize("kind", ["tensors", "torch"])
def test_accumulated_batches_make_the_step_of_a_large_one(two, kind):
    for n in (48, 52):                                     # of the last step there are two batches, or one and a half
        assert far(two.run(jobs.train, kind, n, 8, False, 2)[0], alone(kind, n, 16)) < 1e-12


def test_a_last_batch_that_is_too_small_is_left_out_by_all(two):
    left_out = two.run(jobs.train, "tensors", 50, 8, False, 1)[0]
    learn = jobs.learner("tensors", 50, 8)
    learn.dls.train.drop_last = True
    learn.fit(3)
    assert far(left_out, jobs.results(learn)) < 1e-12


def test_what_a_sharded_model_learns_is_what_a_whole_one_does(two):
    for a, b in zip(two.run(jobs.sharded, True), two.run(jobs.sharded, False), strict=True):
        assert far(a, b) < 1e-12
        assert a["bytes"] < 0.6*b["bytes"]


@pytest.mark.parametrize("n", [16, 50, 63])
@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_parts_are_disjoint_and_make_up_the_batches(n, world):
    def batches(dl):
        torch.manual_seed(0)
        return [yb.tolist() for _, yb in dl]
    x, y = torch.zeros(n, 1), torch.arange(n)
    whole = batches(TensorLoader(x, y, 16, shuffle=True))
    parts = [batches(Sharded(TensorLoader(x, y, 16, shuffle=True), rank, world)) for rank in range(world)]
    for i, batch in enumerate(whole):
        pieces = [p[i] for p in parts if i < len(p)]
        assert sorted(sum(pieces, [])) == sorted(batch)
        assert max(map(len, pieces)) - min([len(p) for p in pieces]) <= 1
    assert sorted(sum(sum(parts, []), [])) == list(range(n))


def test_only_the_first_worker_prints_and_writes(two, tmp_path):
    said = two.run(jobs.loud, str(tmp_path/"fit.pt"))
    assert [bool(s) for s in said] == [True, False]
    assert list(tmp_path.iterdir()) == [tmp_path/"fit.pt"]
    assert read_checkpoint(tmp_path/"fit.pt")["epoch"] == 1


# -- bad input

@pytest.mark.parametrize("what", ["model", "data", "seed", "batches", "epochs"])
def test_workers_that_differ_are_noticed_by_all_before_the_first_step(two, what):
    for said, steps in two.run(jobs.differing, what):
        assert said.startswith("ValueError: worker 1 has another ") and what in said and said.endswith("need the same")
        assert steps == 0


def test_a_batch_that_cannot_be_divided(two):
    for said, steps in two.run(jobs.differing, "", 7):
        assert said == "ValueError: a batch of 7 can't be divided among 2 workers" and steps == 0


def test_a_checkpoint_of_another_model_is_refused_and_kept(two, tmp_path):
    path = tmp_path/"fit.pt"
    two.run(jobs.checkpointed, str(path), 1, 16)
    before = path.read_bytes()
    for said in two.run(jobs.checkpointed, str(path), 1, 32):
        assert said.startswith(f"ValueError: {path} is of another model: 0.weight is (16, 8), not (32, 8)")
    assert path.read_bytes() == before


def test_half_an_environment(monkeypatch):
    for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(k, raising=False)
    assert not launched()
    monkeypatch.setenv("MASTER_PORT", "1")                 # all that accelerate launch --cpu sets
    assert not launched()
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ValueError, match="lacks LOCAL_RANK, WORLD_SIZE, MASTER_ADDR"):
        launched()


def script(code: str, **env) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT,
                          env=os.environ | {"GROUNDUP_DEVICE": "cpu"} | env)


def test_a_port_in_use_is_one_line():
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        done = script("import sys; from exp.nb18 import groundup_train as main; "
                      "sys.exit(main(['--epochs', '1', '--report', 'none']))",
                      RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                      MASTER_PORT=str(s.getsockname()[1]))
    said = [line for line in done.stderr.splitlines() if line.startswith("groundup-train:")]
    assert done.returncode == 1 and len(said) == 1 and "can't meet" in said[0], done.stderr[-2000:]
    assert "Traceback" not in done.stderr


# -- workers that die

def test_a_worker_that_fails_or_leaves_ends_all():
    for f, said in ((jobs.fail, "worker 1: ZeroDivisionError: division by zero"), (jobs.leave, "worker 1: is gone")):
        workers = Workers(2, timeout=LIMIT)
        with pytest.raises(RuntimeError, match=said):
            workers.run(f)
        assert not workers.procs


def test_a_worker_that_hangs_ends_all():
    workers = Workers(2, timeout=LIMIT)
    workers.timeout, start = 3, time.monotonic()
    with pytest.raises(RuntimeError, match="worker 0"):
        workers.run(jobs.hang)
    assert time.monotonic() - start < 30 and not workers.procs


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_workers_end_with_a_parent_that_is_killed():
    code = ("import os, sys, scale_jobs as j; from exp.nb16 import Workers\n"
            "if __name__ == '__main__':\n"
            "    w = Workers(2); print(*(p.pid for p in w.procs), flush=True); w.run(j.hang_all)")
    with subprocess.Popen([sys.executable, "-c", code], cwd=HERE, stdout=subprocess.PIPE, text=True,
                          env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}) as p:
        pids = [int(pid) for pid in p.stdout.readline().split()]
        p.kill()
    end = time.monotonic() + 60
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.2)
    assert len(pids) == 2 and not any(map(alive, pids))


def torchrun(*args, module=None, restarts=1, limit=LIMIT, **env) -> subprocess.CompletedProcess:
    "Two workers under torchrun; whatever happens, nothing of it is left after `limit` seconds."
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               f"--max-restarts={restarts}", *(["-m", module] if module else [HERE/"scale_script.py"]), *args]
    env = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1", "GROUNDUP_DEVICE": "cpu",
                        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} | env
    p = psutil.Popen(list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        out = p.communicate(timeout=limit)[0]
        return subprocess.CompletedProcess(command, p.returncode, out)
    finally:
        for child in [*p.children(recursive=True), p] if p.is_running() else ():
            child.kill()


@pytest.fixture(scope="module")
def undisturbed(two) -> dict:
    "What the fit of scale_script.py gives, of two workers that nobody disturbs and no launcher has started."
    return two.run(jobs.train, "tensors", 48, 8, False, 1)[0]


def weights_of(end: dict) -> list[torch.Tensor]: return list(end["weights"].values())


def test_killed_workers_change_nothing(undisturbed, tmp_path):
    "Killed in the middle of an epoch, one in a batch with and one in one without a checkpoint: the same weights."
    done = torchrun(tmp_path, "kill", 0, 7, "kill", 1, 10, restarts=2)
    assert done.returncode == 0 and "resumed (" in done.stdout, done.stdout[-3000:]
    end = torch.load(tmp_path/"end.pt", weights_only=True)
    assert end["rows"] == undisturbed["rows"]
    for a, b in zip(weights_of(end), undisturbed["weights"], strict=True):
        assert a.equal(b)
    kills = [float((tmp_path/f"done-{i}").read_text().split()[0]) for i in range(2)]
    first, second, third = map(float, (tmp_path/"pids-0").read_text().split()[1::2])
    print(f"restarted after {second - kills[0]:.1f} s")
    assert first < kills[0] < second < kills[1] < third


def test_another_number_of_workers_goes_on(undisturbed, tmp_path):
    "Killed, and not restarted; then one process finishes it, which is said."
    assert torchrun(tmp_path, "kill", 1, 9, restarts=0).returncode != 0
    done = subprocess.run([sys.executable, HERE/"scale_script.py", tmp_path], capture_output=True, text=True,
                          timeout=LIMIT, env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}",
                                                           "GROUNDUP_DEVICE": "cpu"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "AccelerateCB: 2 workers saved this, 1 go on" in done.stdout and "of 1" in done.stdout
    end = torch.load(tmp_path/"end.pt", weights_only=True)
    torch.testing.assert_close(weights_of(end), undisturbed["weights"], rtol=0, atol=1e-12)
    for a, b in zip(end["rows"], undisturbed["rows"], strict=True):
        assert a == pytest.approx(b, abs=1e-7)


def test_a_hanging_worker_is_an_error_within_the_limit(tmp_path):
    start = time.monotonic()
    done = torchrun(tmp_path, "hang", 1, 9, restarts=0, TIMEOUT="5")
    assert done.returncode != 0 and time.monotonic() - start < 120
    assert "TimeoutError: waited for another worker in training batch" in done.stdout, done.stdout[-3000:]
    assert "it hangs (5 s) or is gone" in done.stdout


# -- the command

ARGS = ["--epochs", "1", "--n_train", "600", "--n_valid", "300", "--bs", "64", "--model", "pooled_resnet", "--float32"]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_command_trains_under_a_launcher(tmp_path, launcher):
    args = [*ARGS, "--report", tmp_path/"r.html", "--save", tmp_path/"m.pt"]
    if launcher == "torchrun":
        done = torchrun(*args, "--checkpoint", tmp_path/"fit.pt", module="exp.nb18", restarts=0)
        assert read_checkpoint(tmp_path/"fit.pt")["epoch"] == 1
    else:
        config = {"num_processes": 2, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no",
                  "main_process_port": free_port()}
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
                   *(f"--{k}={v}" for k, v in config.items()), "-m", "exp.nb18", *map(str, args)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=LIMIT, env=os.environ | {"OMP_NUM_THREADS": "1", "GROUNDUP_DEVICE": "cpu"})
    assert done.returncode == 0, done.stdout[-3000:]
    assert [done.stdout.count(once) for once in ("train_loss", "mostly taken for", "page: ")] == [1, 1, 1]
    assert (tmp_path/"r.html").exists() and (tmp_path/"m.pt").exists()


def test_wrong_arguments_are_one_line_of_one_worker(tmp_path):
    done = torchrun(*ARGS[:-5], "--bs", "255", "--report", "none", module="exp.nb18", restarts=0)
    said = [line for line in done.stdout.splitlines() if "groundup-train:" in line]
    assert done.returncode != 0 and len(said) == 1 and "a batch of 255 can't be divided among 2 workers" in said[0]
