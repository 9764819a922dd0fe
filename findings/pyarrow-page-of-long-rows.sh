#!/usr/bin/env bash
# One would guess that Parquet written with data_page_size = 1 MiB has pages of about 1 MiB.
# Rows of 64 KiB fill pages of 64 MiB: pyarrow looks at the size once in write_batch_size rows, which
# are 1024 by default.
# It matters to readers that stream: a page is decompressed as a whole, so that reading eight rows at
# a time takes the memory of 1024.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pyarrow==26.0.1
cat > "$folder/pages.py" <<'PY'
import sys

import pyarrow as pa
import pyarrow.parquet as pq

MIB = 2**20
options = {"write_batch_size": int(sys.argv[1])} if len(sys.argv) > 1 else {}
table = pa.table({"text": [f"{i:08}" + "x" * (2**16 - 8) for i in range(2048)]})
pq.write_table(table, "a.parquet", use_dictionary=False, data_page_size=MIB, **options)
del table
pool = pa.default_memory_pool()
before, most = pool.bytes_allocated(), 0
with pq.ParquetFile("a.parquet", pre_buffer=False, buffer_size=MIB) as file:
    for _ in file.iter_batches(8, use_threads=False):
        most = max(most, pool.bytes_allocated() - before)
print(round(most / MIB))
PY
cd "$folder"
default=$(venv/bin/python pages.py)
eight=$(venv/bin/python pages.py 8)
echo "pyarrow 26.0.1: MiB that reading eight rows of 64 KiB at a time takes, data_page_size = 1 MiB"
echo "write_batch_size by default: $default"
echo "write_batch_size = 8:        $eight"
[ "$default" -ge 64 ] || { echo "CHANGED: pages of long rows are smaller"; exit 1; }
[ "$eight" -le 8 ] || { echo "CHANGED: write_batch_size does not make pages small"; exit 1; }
echo "seen: a page has 1024 rows of 64 KiB, whatever data_page_size is"
