"""A plugin of coverage.py: Ray kills its workers, so each saves what it has covered as it runs."""

import threading
import time
from typing import Any

import coverage

EVERY_S = 1.0


def coverage_init(registry: Any, options: Any) -> None:
    """Start saving; coverage.py calls this in each process that it measures."""
    threading.Thread(target=_save_for_ever, name="coverage-saving", daemon=True).start()


def _save_for_ever() -> None:
    while True:
        time.sleep(EVERY_S)
        measuring = coverage.Coverage.current()
        if measuring is not None:
            measuring.save()
