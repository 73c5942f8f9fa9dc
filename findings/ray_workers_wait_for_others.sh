#!/usr/bin/env bash
# ray 2.60.0: worker processes run at niceness 15, so beside as many ordinary processes as there are cores they hardly run.
#
# A task asks Ray for one CPU and gets it, and the dashboard shows it as running. Expected: beside one busy process per core it has at least
# half a core, as any process would. Seen: a few hundredths of one, because the raylet starts its workers with niceness 15 (its setting
# worker_niceness) and the driver's own processes have 0: data loaders, a second program on the machine, a test beside it. With
# RAY_worker_niceness=0 in the environment of whoever starts the raylet it has its share.
#
# Output seen, on two cores:
#   by default: niceness 15, 0.04 of a core
#   RAY_worker_niceness=0: niceness 0, 0.61 of a core
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check ray==2.60.0
cat > seen.py <<'PY'
import multiprocessing
import os
import time

import ray


def busy(end):
    while time.time() < end:
        pass


@ray.remote(num_cpus=1)
def share(seconds):
    end, began = time.time() + seconds, time.process_time()
    busy(end)
    return os.getpriority(os.PRIO_PROCESS, 0), (time.process_time() - began) / seconds


if __name__ == "__main__":
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.get(share.remote(0.1))  # it is up
    others = [multiprocessing.Process(target=busy, args=(time.time() + 15,)) for _ in os.sched_getaffinity(0)]
    for other in others:
        other.start()
    time.sleep(1)
    niceness, part = ray.get(share.remote(10))
    for other in others:
        other.join()
    print(f"{os.environ['SAID']}: niceness {niceness}, {part:.2f} of a core")
    asked = int(os.environ.get("RAY_worker_niceness", "15"))
    assert niceness == asked and (part < 0.12 if asked else part > 0.12), "changed"
PY
export RAY_USAGE_STATS_ENABLED=0
SAID="by default" venv/bin/python seen.py
SAID="RAY_worker_niceness=0" RAY_worker_niceness=0 venv/bin/python seen.py
