"""How the parts that compute are imported: late, and so that an interrupt does no harm."""

import gc
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Around the first import of torch, which takes seconds.

    An interrupt ends the program there and then, without a traceback, unless whoever started it
    has interrupts ignored. Only the main thread may set signals, so another one leaves them alone.
    """
    if "torch" in sys.modules or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Collecting among torch's hundred thousands of lasting objects costs a second, much of it at
    # the very end.
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        signal.signal(signal.SIGINT, before)
