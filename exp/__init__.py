"""The code of the groundup notebooks: chapter `nbs/NN_name.ipynb` is module `exp.nbNN`. Importing this imports none."""
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")         # torch's threads wait asleep (benchmarks/threads.py)
