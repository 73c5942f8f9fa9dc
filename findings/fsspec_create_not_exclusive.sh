#!/usr/bin/env bash
# fsspec 2026.9.0: `LocalFileSystem.pipe_file(path, data, mode="create")` asks whether the file exists and writes it then.
#
# The mode is documented as failing where the file exists, and the memory filesystem opens with "x". Expected of a local disk: of
# two writers of one path one gets FileExistsError, as with open(path, "xb"). Seen: the file is opened without O_EXCL and truncated,
# so a second writer that comes between loses what it has written, and both are told that they created it. What is built on it as
# a lock has two owners. (An audit hook plays the second writer here, at the moment in which the first opens.)
#
# Output seen:
#   pipe_file(mode="create"): opened without O_EXCL; both writers succeeded, the file holds b'first'
#   open(path, "xb"): opened with O_EXCL; one writer succeeded, the file holds b'second'
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check fsspec==2026.9.0
venv/bin/python - <<'PY'
import os
import sys

import fsspec

disk = fsspec.filesystem("file")
opened: dict[str, bool] = {}


def second_writer(event, arguments) -> None:
    path, mode = (str(arguments[0]), arguments[1]) if event == "open" else ("", None)
    if os.path.basename(path) in ("created", "exclusive") and mode is not None and path not in opened:
        opened[path] = bool(arguments[2] & os.O_EXCL)
        with open(path, "xb") as file:  # it is not there yet
            file.write(b"second")


sys.addaudithook(second_writer)


def first_writer(name: str, write) -> tuple[bool, int, bytes]:
    path, succeeded = os.path.abspath(name), 1
    try:
        write(path)
        succeeded += 1
    except FileExistsError:
        pass
    exclusive = opened[path]
    with open(path, "rb") as file:
        return exclusive, succeeded, file.read()


def exclusively(path: str) -> None:
    with disk.open(path, "xb") as file:
        file.write(b"first")


created = first_writer("created", lambda path: disk.pipe_file(path, b"first", mode="create"))
opens = first_writer("exclusive", exclusively)
for name, (exclusive, count, data) in (('pipe_file(mode="create")', created), ('open(path, "xb")', opens)):
    writers = "both writers" if count == 2 else "one writer"
    print(f"{name}: opened {'with' if exclusive else 'without'} O_EXCL; {writers} succeeded, the file holds {data}")
assert (created, opens) == ((False, 2, b"first"), (True, 1, b"second")), "changed"
PY
