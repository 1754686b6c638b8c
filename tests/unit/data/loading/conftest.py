"""Two small corpora that the tests of the loaders read."""

from __future__ import annotations

import pytest
from loader_cases import documents

from megatron_apriel.testing.corpora import write_corpus


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return {
        "text": write_corpus(root / "text", documents(0, 120, images=False), images=None),
        "pictures": write_corpus(root / "pictures", documents(1, 60, images=True)),
    }
