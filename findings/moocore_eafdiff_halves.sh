#!/usr/bin/env bash
# moocore 0.3.2: `eafdiff(x, y)` of unequally many runs counts the first half of all runs as those of x, whatever x holds.
#
# x has three runs, y has one; a goal that one run of x attains and no run of y does. Expected: a difference in favour of x (a
# third of its runs, or an error that the numbers of runs must be equal). Seen: -1, as of a goal that only y attains, since the
# third run of x is counted among those of y. No warning.
#
# Output seen:
#   at (3, 1), attained by run 3 of x alone: -1.0
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check moocore==0.3.2 numpy==2.4.6
venv/bin/python - <<'PY'
import moocore
import numpy as np

x = np.array([[1, 3, 1], [2, 2, 2], [3, 1, 3.0]])  # two objectives to be minimised, number of the run
y = np.array([[9, 9, 1.0]])
rows = np.asarray(moocore.eafdiff(x, y))
found = [float(row[2]) for row in rows if row[0] == 3 and row[1] == 1]
print(f"at (3, 1), attained by run 3 of x alone: {found[0] if found else 'no row'}")
assert found == [-1.0], f"changed: {rows.tolist()}"
PY
