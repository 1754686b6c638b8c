"""tools/prepare_data.py as the tests of a corpus call it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def prepare_data() -> Callable[..., int]:
    """The tool's ``main`` with arguments of any type."""
    place = Path(__file__).parents[4] / "tools" / "prepare_data.py"
    specification = importlib.util.spec_from_file_location("prepare_data_tool", place)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return lambda *arguments: module.main([str(one) for one in arguments])
