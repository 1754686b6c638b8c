"""A model that knows a few conversations by heart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    """Several wait for each other, at every operation of a model this small."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def rigged(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    from megatron_apriel.testing.rigged_models import write_rigged_model

    return write_rigged_model(tmp_path_factory.mktemp("rigged") / "model")
