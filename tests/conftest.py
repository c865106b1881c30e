import gc
import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a job in the background; tests interrupt their children
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish():
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """What a file imported stays. Every training collects garbage, a second where it looks at all that was imported."""
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()
