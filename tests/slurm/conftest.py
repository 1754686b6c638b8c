"""A Slurm for the tests of this folder, and small inputs for the stages' scripts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, absent
from stage_jobs import Jobs, write_inputs


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Of two nodes; with as many GPUs each as the module's ``GPUS``."""
    if "slurm" not in request.config.option.markexpr:
        pytest.skip("starts daemons on this machine: make test-slurm")
    if reason := absent():
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="slurm_"))
    directory.chmod(0o755)
    try:
        with Cluster(directory, getattr(request.module, "GPUS", 0)) as running:
            yield running
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and corpora."""
    root = tmp_path_factory.mktemp("inputs")
    write_inputs(root)
    return root


@pytest.fixture
def jobs(cluster: Cluster, inputs: Path, tmp_path: Path) -> Iterator[Jobs]:
    """Submits stages into runs of their own, in a directory whose name has a space; no job outlives the test."""
    made = Jobs(cluster, inputs, tmp_path / "my runs")
    try:
        yield made
    finally:
        cluster.cancel_all()
