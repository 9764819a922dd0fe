#!/usr/bin/env bash
# One would guess that OMP_NUM_THREADS=1 keeps a prange loop of numba's OpenMP layer on one thread.
# The loop runs on all of numba's threads; OMP_THREAD_LIMIT=1 does keep it on one, and
# get_num_threads() goes on to say 2.
# It matters in containers and CI jobs that set OMP_NUM_THREADS to leave CPUs to others.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numba==0.68.1
cat > "$folder/loop.py" <<'PY'
import numba
import numpy as np


@numba.njit(parallel=True)
def thread_of_each_index(n):
    ids = np.empty(n, np.int64)
    for i in numba.prange(n):
        ids[i] = numba.get_thread_id()
    return ids


ids = thread_of_each_index(1000)
print(numba.threading_layer(), numba.get_num_threads(), len(np.unique(ids)))
PY
cd "$folder"
export NUMBA_NUM_THREADS=2 NUMBA_THREADING_LAYER=omp
asked=$(OMP_NUM_THREADS=1 venv/bin/python loop.py)
limited=$(OMP_THREAD_LIMIT=1 venv/bin/python loop.py)
echo "numba 0.68.1: threading_layer(), get_num_threads(), threads that the loop ran on"
echo "OMP_NUM_THREADS=1:  $asked"
echo "OMP_THREAD_LIMIT=1: $limited"
[ "$asked" = "omp 2 2" ] || { echo "CHANGED: OMP_NUM_THREADS counts"; exit 1; }
[ "$limited" = "omp 2 1" ] || { echo "CHANGED: OMP_THREAD_LIMIT counts otherwise"; exit 1; }
echo "seen: OMP_NUM_THREADS=1 is ignored, OMP_THREAD_LIMIT=1 counts and get_num_threads() says 2"
