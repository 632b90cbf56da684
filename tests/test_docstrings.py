"""Examples in docstrings, run as they stand."""

import doctest
from importlib import import_module

import pytest

from tests.house import modules

SKETCHES = {"cggm.runs.session"}  # whose parts are the reader's
WITH_EXAMPLES = sorted(
    name for name, file in modules().items() if ">>> " in file.read_text() and name not in SKETCHES
)


def test_there_are_examples():
    assert len(WITH_EXAMPLES) >= 5


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_print_what_they_show(name):
    module = import_module(name)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    done = doctest.testmod(module, optionflags=options)
    assert done.attempted > 0
    assert done.failed == 0
