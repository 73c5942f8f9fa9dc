#!/usr/bin/env bash
# safetensors 0.8.0: the same tensors and metadata are written as different bytes from one call of `save` to the next.
#
# Expected: equal content gives equal files, so that a digest of the file tells whether an adapter changed. Seen: with two or more
# entries of metadata their order in the header is drawn anew in every call, within one process too; tensors keep theirs, and
# files without metadata are equal. So a digest of a file with metadata (as diffusers and kohya write adapters) says nothing about
# equal content.
#
# Output seen:
#   without metadata: 1 digest(s) of 100 saves
#   with 3 entries of metadata: 6 digest(s) of 100 saves
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
venv/bin/python - <<'PY'
import hashlib

import numpy as np
import safetensors.numpy

tensors = {"down": np.ones((2, 4), np.float32), "up": np.ones((4, 2), np.float32)}
metadata = {"format": "pt", "rank": "2", "alpha": "2"}
found = {}
for what, stated in (("without metadata", None), ("with 3 entries of metadata", metadata)):
    digests = {hashlib.sha256(safetensors.numpy.save(tensors, stated)).hexdigest() for _ in range(100)}
    found[what] = len(digests)
    print(f"{what}: {len(digests)} digest(s) of 100 saves")
assert found["without metadata"] == 1 and found["with 3 entries of metadata"] > 1, "changed"
PY
