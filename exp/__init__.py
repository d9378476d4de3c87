"""The code of the groundup notebooks: chapter `nbs/NN_name.ipynb` is module `exp.nbNN`. Importing this imports none."""
import os

if "OMP_WAIT_POLICY" not in os.environ:                     # torch's threads look for work for a moment, then sleep:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"               # benchmarks/threads.py
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")        # the moment, where OpenMP is GNU's
if os.path.isdir("/sys/kernel/mm/transparent_hugepage"):    # Linux, where memory comes in large pages for who asks:
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")      # torch asks, for tensors from 2 MB on
