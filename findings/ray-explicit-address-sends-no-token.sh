#!/usr/bin/env bash
# One would guess that a program that reaches its user's cluster by `ray.init(address="auto")` reaches it
# by `ray.init(address="HOST:PORT")`, too, with the address that "auto" finds.
# Once any `ray.init()` has written ~/.ray/auth_token, `ray start --head` demands that token. "auto" sends
# it; an explicit address does not, and ends after many seconds with an AuthenticationError, unless
# RAY_AUTH_MODE=token is set.
# It matters to scripts with an address: they work until the first local `ray.init()` on the machine.
set -euo pipefail

folder=$(mktemp -d)
trap 'kill "${head:-}" 2> /dev/null || true; wait; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ray==2.60.0
export HOME=$folder RAY_USAGE_STATS_ENABLED=0 RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0
unset RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_ADDRESS || true
port=26379
loopback=$(python3 -c 'import ipaddress; print(ipaddress.IPv4Address(0x7F000001))')

cat > "$folder/connect.py" <<'PYTHON'
import sys

import ray

try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    print("connected")
except ConnectionError as error:
    print("AuthenticationError" if "AuthenticationError" in str(error.__cause__) else repr(error))
PYTHON
"$folder/venv/bin/python" -c 'import ray; print("ray", ray.__version__)'
"$folder/venv/bin/python" -c 'import ray; ray.init(address="local", num_cpus=1, object_store_memory=80 * 2**20)' \
    > /dev/null 2>&1
"$folder/venv/bin/ray" start --head --node-ip-address "$loopback" --port $port --num-cpus 1 \
    --object-store-memory 80000000 --include-dashboard false --block > "$folder/head" 2>&1 &
head=$!
until grep -q "Ray runtime started" "$folder/head"; do sleep 1; done
auto=$("$folder/venv/bin/python" "$folder/connect.py" auto 2>/dev/null)
explicit=$("$folder/venv/bin/python" "$folder/connect.py" "$loopback:$port" 2>/dev/null)
token=$(RAY_AUTH_MODE=token "$folder/venv/bin/python" "$folder/connect.py" "$loopback:$port" 2>/dev/null)
echo "auto: $auto; the same address: $explicit; with RAY_AUTH_MODE=token: $token"

if [[ $auto == connected && $explicit == AuthenticationError && $token == connected ]]; then
    echo "seen: only auto sends the token that the cluster demands"
else
    echo "CHANGED: $auto / $explicit / $token"
    exit 1
fi
