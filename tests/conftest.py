"""What all tests share."""

import os

# One thread per test process: two run side by side on two cores, and sums stay in one order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
