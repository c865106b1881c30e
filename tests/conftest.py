import gc
import os
import signal

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a job in the background; tests interrupt their children
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files in which a test takes longest. They come first: the last one keeps a worker busy while the others have nothing.
LONG = (
    "test_kill", "test_launch", "test_faulty_endpoint", "test_retrain", "test_secrets", "test_hostile",
    "test_thinking_lost", "test_stage_host", "test_study", "test_gate", "test_reporting_page", "test_task_cache",
    "test_question", "test_benchmarks", "test_dvc_worker", "test_prune", "test_chat_models", "test_registry",
    "test_reporting_side_by_side", "test_lock_file", "test_trainer_interruption", "test_trainer",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))


def pytest_collection_finish():
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
    """What a file imported stays. Every training collects garbage, a second where it looks at all that was imported."""
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()
