"""Tests, in folders as the package has; conftest.py has what all of them share.

The environment of each process that tests is set here, before it imports NumPy or refllm.
"""

import os
import sys
from pathlib import Path

CACHE = Path(os.environ.get("REFLLM_TEST_CACHE", "~/.cache/refllm-tests")).expanduser()

# NumPy's matrix products, of which refllm's answers have none, are small here: two threads for each
# wait for each other, and two processes that test would have four.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Images of containers often forbid bytecode beside the sources (PYTHONDONTWRITEBYTECODE). Tests
# start hundreds of processes, each of which would compile all modules that it imports again.
if sys.dont_write_bytecode:
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(CACHE / "bytecode")
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
