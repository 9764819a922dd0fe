#!/usr/bin/env bash
# One would guess that `ray.init(_node_ip_address="localhost")` makes a cluster of one machine listen on
# loopback, as the address of the node says.
# Ray replaces a loopback address by the machine's own and listens on all addresses. On Linux, too, only
# RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, whose name is of other systems, keeps the node on loopback.
# It matters to programs that start Ray for a user on one machine: an argument that is accepted changes
# nothing, and ports are reachable from the network.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet ray==2.60.0 psutil==7.2.2

cat > "$folder/listening.py" <<'PYTHON'
import sys
from ipaddress import ip_address

import psutil
import ray

ray.init(
    address="local",
    _node_ip_address="localhost",
    include_dashboard=False,
    num_cpus=1,
    object_store_memory=80 * 2**20,
    log_to_driver=False,
    logging_level="ERROR",
    _temp_dir=sys.argv[1],
)
found = set()
for process in psutil.Process().children(recursive=True):
    if process.name() in ("gcs_server", "raylet"):
        for each in process.net_connections("inet"):
            if each.status == psutil.CONN_LISTEN:
                found.add(each.laddr.ip.removeprefix("::ffff:"))
node = ip_address(ray.util.get_node_ip_address()).is_loopback
only = bool(found) and all(ip_address(each).is_loopback for each in found)
ray.shutdown()
print("the node has a loopback address:", node, "- listens on loopback only:", only)
PYTHON

export HOME=$folder RAY_USAGE_STATS_ENABLED=0
"$folder/venv/bin/python" -c 'import ray; print("ray", ray.__version__)'
plain=$("$folder/venv/bin/python" "$folder/listening.py" "$folder/a" 2>/dev/null)
switched=$(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 \
    "$folder/venv/bin/python" "$folder/listening.py" "$folder/b" 2>/dev/null)
echo "as it is: $plain"
echo "with the variable: $switched"

if [[ $plain == *"address: False"*"only: False" && $switched == *"address: True"*"only: True" ]]; then
    echo "seen: loopback is replaced, and all addresses are listened on, unless clusters are switched off"
else
    echo "CHANGED: $plain / $switched"
    exit 1
fi
