"""Ctrl-C, SIGTERM and ``cdsweep stop``: heard at once in every phase, answered by one line, obeyed within seconds.

Whatever a phase is doing is broken off by a KeyboardInterrupt in the main thread. That is safe anywhere: a file appears
complete or not at all, and what is running goes on from its last checkpoint when the sweep is resumed.
"""

import atexit
import contextlib
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

LEAVE_SECONDS = 5.0
"""From a request until the process leaves, wherever it is: a storage that does not answer does not keep it."""
EXIT_CODE = 130
_LOOK_SECONDS = 0.2
_LAST_SECONDS = 1.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ANSWER = "stopping; what runs keeps its last checkpoint (Ctrl-C again leaves at once)"
_SHOW_CURSOR = "\x1b[?25h"


class Stop:
    """Whether somebody wants this process to end."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """Answer requests with ``say``, which prints a line."""
        self.asked = threading.Event()
        """Set by whoever sees a request that is no signal."""
        self.goes_on = ""
        """What to say last where the way out takes too long: how the work is taken up again."""
        self.leaving: Callable[[], None] = lambda: None
        """What to write last there; given a second."""
        self._say = say
        self._heard, self._over = threading.Event(), threading.Event()
        self._answered = threading.Event()

    def wanted(self) -> bool:
        """Whether it is to end."""
        return self._heard.is_set() or self.asked.is_set()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block the first request raises KeyboardInterrupt here, and a second signal ends the process.

        Once a request was heard it is listened until the process is gone, in time: the way out may be long.
        """
        if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
            yield
            return
        heard, tell = os.pipe()
        os.set_blocking(tell, False)
        before = {number: signal.getsignal(number) for number in _SIGNALS}
        listener = threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True)
        descriptor = signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        try:
            for number in _SIGNALS:
                signal.signal(number, self._interrupt)
            listener.start()
            yield
        finally:
            if not self._heard.is_set():
                self._over.set()
                signal.set_wakeup_fd(descriptor)
                for number, handler in before.items():
                    signal.signal(number, handler)
                listener.join()
                os.close(heard)
                os.close(tell)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the handler's signature
        """Break off what the main thread does, once: at a second signal the listener leaves."""
        if not self._heard.is_set():
            self._heard.set()
            atexit.register(self._leave_at_last)  # Python takes seconds to tear down what is loaded
            raise KeyboardInterrupt

    def _listen(self, pipe: int) -> None:
        """Answer at once, also where the main thread is busy with something that knows no signals."""
        passed_on, signals, leave = False, 0, math.inf
        while not self._over.is_set():
            if select.select([pipe], [], [], _LOOK_SECONDS)[0]:
                signals += sum(number in _SIGNALS for number in os.read(pipe, 64))
            elif self.asked.is_set() and not passed_on:
                passed_on = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if signals and leave == math.inf:
                leave = time.monotonic() + LEAVE_SECONDS
                self._tell(_ANSWER)
                self._answered.set()
            # ``cdsweep stop`` asks through the storage, and has Ray end the job by a signal: one request.
            again, late = signals > (2 if passed_on else 1), time.monotonic() > leave
            if (again or late) and not self._over.is_set():
                if late:
                    self._leave_late()
                _leave()

    def _leave_late(self) -> None:
        """Say and write what the way out would have, a storage that does not answer notwithstanding."""
        writing = threading.Thread(target=self.leaving, name="leaving", daemon=True)
        writing.start()
        writing.join(_LAST_SECONDS)
        if self.goes_on:
            self._tell(self.goes_on)

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # a closed terminal hears no answer
            self._say(line)

    def _leave_at_last(self) -> None:
        """End the process after all it had to say and to write; it may be done before the listener has woken up."""
        self._answered.wait(1.0)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        _leave()


def _leave() -> None:
    """End the process; Ray's local processes end with it, and a cluster ends the trials of a driver that is gone."""
    if sys.stderr.isatty():  # a live table has hidden it
        os.write(sys.stderr.fileno(), _SHOW_CURSOR.encode())
    os._exit(EXIT_CODE)
