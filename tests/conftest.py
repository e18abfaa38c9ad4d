"""Shared by all tests. Its presence puts the repository's root on the path, so that `tests.models` imports.

One thread a process: the models are tiny, and threads that wait for each other on a busy machine cost
more than they give.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
