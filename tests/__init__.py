"""Tests, in folders as the package has; conftest.py has what all of them share."""

import os

# Before NumPy is imported. Its matrix products, of which refllm's answers have none, are small
# here: two threads for each wait for each other, and two processes that test would have four.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
