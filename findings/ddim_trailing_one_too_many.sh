#!/usr/bin/env bash
# diffusers 0.42.1: DDIMScheduler with `timestep_spacing="trailing"` gives one timestep more than asked for at some
# step counts, and the last one is -1.
#
# The timesteps are numpy.arange(1000, 0, -1000 / n) - 1, whose float steps do not always end at 0 where they should. Expected: n timesteps
# >= 0. Seen: at 61, 103, 121 and other counts n + 1 timesteps, the last one -1; as an index into alphas_cumprod that is the
# noisiest level, so the finished picture is asked for once more as if it were noise. No warning.
#
# Output seen:
#   step counts up to 250 with a timestep too many: 61 103 121 122 201 206 217 223 227 233 242 244
#   61 steps: 62 timesteps, the last one -1; alphas_cumprod[-1] = 0.0047
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT; cd "$folder"
"${PYTHON:-python3}" -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 numpy==2.4.6
venv/bin/python - <<'PY'
from diffusers import DDIMScheduler

ddim = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, timestep_spacing="trailing")
wrong = []
for count in range(1, 251):
    ddim.set_timesteps(count)
    if len(ddim.timesteps) != count:
        wrong.append(count)
print("step counts up to 250 with a timestep too many:", *wrong)
ddim.set_timesteps(61)
last, level = int(ddim.timesteps[-1]), float(ddim.alphas_cumprod[int(ddim.timesteps[-1])])
print(f"61 steps: {len(ddim.timesteps)} timesteps, the last one {last}; alphas_cumprod[-1] = {level:.4f}")
assert (61 in wrong, len(ddim.timesteps), last, round(level, 4)) == (True, 62, -1, 0.0047), "changed"
assert wrong == [61, 103, 121, 122, 201, 206, 217, 223, 227, 233, 242, 244], "changed"
PY
