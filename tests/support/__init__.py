"""What several test modules need. Replicas and tasks get it by value, as they get the tests."""

import sys

from ray import cloudpickle


def pickle_by_value(module: str) -> None:
    """Have Ray send a module's code along, for replicas and tasks cannot import what tests do."""
    cloudpickle.register_pickle_by_value(sys.modules[module])


pickle_by_value(__name__)  # and all modules below it
