#!/usr/bin/env bash
# One would guess that a dataset that Ray Data writes to Parquet has one schema in all of its files.
# A column whose values are NumPy arrays, such as the token ids of each row, is a list in a file whose rows
# have equally many, and a struct of "data" and "shape" in a file whose rows have not. pyarrow reads each
# file, and not the folder.
# It matters to pipelines of map_batches with NumPy batches, the default: the files of an untested input
# cannot be opened together. With batch_format="pyarrow" the column is the same list in all files.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ray==2.60.0 pyarrow==26.0.1 numpy==2.4.6 pandas==3.1.1 fsspec==2026.9.0
export HOME=$folder RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0

cat > "$folder/write.py" <<'PY'
import numpy as np
import pyarrow as pa
import ray

ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20)
rows = ray.data.from_items([{"n": n} for n in (3, 3, 3, 1, 2, 3)], override_num_blocks=2)


def by_numpy(batch):
    ids = np.empty(len(batch["n"]), object)
    ids[:] = [np.arange(n) for n in batch["n"]]
    return {"ids": ids}


def by_pyarrow(batch):
    return pa.table({"ids": [list(range(n)) for n in batch["n"].to_pylist()]})


for function in (by_numpy, by_pyarrow):
    name = function.__name__.removeprefix("by_")
    rows.map_batches(function, batch_format=name, batch_size=3).write_parquet(name)
PY
cat > "$folder/read.py" <<'PY'
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

folder = Path(sys.argv[1])
types = {str(pq.read_schema(file).field("ids").type) for file in folder.glob("*.parquet")}
try:
    read = f"{pq.read_table(folder).num_rows} rows"
except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
    read = type(error).__name__
print(f"{len(types)} types: {', '.join(sorted(types))}; the folder: {read}")
PY
cd "$folder"
venv/bin/python write.py > log 2>&1 || { cat log; exit 1; }
numpy=$(venv/bin/python read.py numpy)
arrow=$(venv/bin/python read.py pyarrow)
echo "ray 2.60.0, pyarrow 26.0.1: files of rows with 3, 3, 3 and with 1, 2, 3 ids"
echo "batches of NumPy, $numpy"
echo "batches of pyarrow, $arrow"
[[ $numpy == "2 types: "*"struct<data: "*"the folder: Arrow"* ]] || { echo "CHANGED: NumPy, $numpy"; exit 1; }
[[ $arrow == "1 types: list<"*"the folder: 6 rows" ]] || { echo "CHANGED: pyarrow, $arrow"; exit 1; }
echo "seen: a column of arrays is a list in one file and a struct in another"
