"""Times that are compared with another one of the same minute, so that no test hangs on the machine it runs on."""

import time
from collections.abc import Callable


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor time of this process for a piece of work; the least of three, the first of which may import."""
    return min(_once(work) for _ in range(3))


def _once(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began
