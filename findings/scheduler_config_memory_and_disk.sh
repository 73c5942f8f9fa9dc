#!/usr/bin/env bash
# diffusers 0.42.1: a scheduler made from another one's config samples at other timesteps before the pipeline was saved than
# after.
#
# `DDIMScheduler.from_config(euler.config)` drops every value that was left at the default of Euler's class and takes the default
# of DDIM's, as long as the config has not been on disk; a saved config holds the values themselves, and they stay. Expected: a
# round trip through save_pretrained and from_pretrained changes nothing. Seen: `timestep_spacing` is `leading` before, `linspace`
# after, and 4 steps begin at timestep 750 or 999. So a test that builds its scheduler in memory does not see what users load.
#
# Output seen:
#   in memory: spacing leading, timesteps [750, 500, 250, 0]
#   from disk: spacing linspace, timesteps [999, 666, 333, 0]
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
venv/bin/python - <<'PY'
from diffusers import DDIMScheduler, EulerDiscreteScheduler

euler = EulerDiscreteScheduler()
euler.save_pretrained("euler")
loaded = EulerDiscreteScheduler.from_pretrained("euler")
assert euler.config.timestep_spacing == loaded.config.timestep_spacing == "linspace"
found = {}
for place, source in (("in memory", euler), ("from disk", loaded)):
    ddim = DDIMScheduler.from_config(source.config)
    ddim.set_timesteps(4)
    found[place] = ddim.timesteps.tolist()
    print(f"{place}: spacing {ddim.config.timestep_spacing}, timesteps {found[place]}")
assert found == {"in memory": [750, 500, 250, 0], "from disk": [999, 666, 333, 0]}, "changed"
PY
