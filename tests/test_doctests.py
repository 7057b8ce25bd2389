"""The examples in docstrings."""

import doctest
import importlib

import pytest
from support.layout import modules

NAMES = [name for name in modules() if not name.startswith("raycompose.cli")]


@pytest.mark.parametrize("name", NAMES)
def test_examples_in_docstrings_are_true(name: str) -> None:
    """Every doctest of the package passes."""
    results = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert results.failed == 0


def test_there_are_examples_in_docstrings() -> None:
    """The test above looks at something: the pure parts are doctested."""
    found = (doctest.DocTestFinder().find(importlib.import_module(name)) for name in NAMES)
    assert sum(bool(test.examples) for tests in found for test in tests) >= 1
