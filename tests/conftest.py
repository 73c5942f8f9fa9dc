"""What all tests share."""

import os

from hypothesis import settings

# One thread per test process: two run side by side on two cores, and sums stay in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine is no reason to fail.
settings.register_profile("cdsweep", deadline=None)
settings.load_profile("cdsweep")
