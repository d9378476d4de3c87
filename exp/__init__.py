"""The code of the groundup notebooks: chapter `nbs/NN_name.ipynb` is module `exp.nbNN`. Importing this imports none."""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")         # torch's threads wait asleep (benchmarks/threads.py)
if os.path.isdir("/sys/kernel/mm/transparent_hugepage"):    # Linux, where memory comes in large pages for who asks:
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")      # torch asks, for tensors from 2 MB on
