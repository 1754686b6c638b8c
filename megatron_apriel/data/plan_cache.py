"""Packing plans kept on disk, so that a resumed run, and every rank of a host, finds them made.

A plan is one ``.npz`` file named by the hash of everything that it depends on; it can be deleted at any time. It lies
in ``.packing`` in the corpus's directory, or in ``$XDG_CACHE_HOME/megatron_apriel/packing`` where that cannot be
written. Files appear whole, by renaming. Ranks that start together take turns behind a file lock where the file system
has locks; where it has none they do the same work at the same time, with the same result.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np

from megatron_apriel.data.corpus import Corpus
from megatron_apriel.data.packing import LongDocuments, LongDocumentsReport, PackingPlan, make_plan
from megatron_apriel.terminal import named_logger

ALGORITHM = 1
"""Part of the hash: counts up when the same inputs would give another plan."""

_ARRAYS = ("documents", "starts", "lengths", "offsets", "tokens")

logger = named_logger(__name__)


def cached_plan(corpus: Corpus, sequence_length: int, seed: int, long_documents: LongDocuments) -> PackingPlan:
    """:func:`~megatron_apriel.data.packing.make_plan`, read from disk where it was made before.

    Raises what ``make_plan`` raises; a cache that is damaged or cannot be written is never an error.
    """
    name = f"{plan_key(corpus, sequence_length, seed, long_documents)}.npz"
    directories = cache_directories(corpus)
    for directory in directories:
        plan = _read(directory / name, sequence_length, seed)
        if plan is not None:
            return plan
    for directory in directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with _turn(directory / f"{name}.lock"):
                plan = _read(directory / name, sequence_length, seed)
                if plan is None:
                    plan = make_plan(corpus, sequence_length, seed, long_documents)
                    _write(directory / name, plan)
            return plan
        except OSError as error:
            logger.info("packing plans cannot be kept in %s: %s", directory, error)
    return make_plan(corpus, sequence_length, seed, long_documents)


def cache_directories(corpus: Corpus) -> tuple[Path, Path]:
    """Where plans of a corpus are kept, first choice first."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - Path's own raises where there is no home
    return corpus.path / ".packing", Path(home) / "megatron_apriel" / "packing"


def plan_key(corpus: Corpus, sequence_length: int, seed: int, long_documents: LongDocuments) -> str:
    """Hash of everything that a plan depends on."""
    digest = hashlib.sha256(json.dumps([ALGORITHM, sequence_length, seed, long_documents]).encode())
    lengths = np.ascontiguousarray(corpus.documents["tokens"])
    digest.update(lengths.tobytes())
    if lengths.max() > sequence_length:
        for column in ("document", "start", "rows", "columns"):
            digest.update(np.ascontiguousarray(corpus.image_rows[column]).tobytes())
    return digest.hexdigest()[:32]


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        # Without locks (some network file systems), ranks repeat each other's work; nothing else changes.
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(path: Path, sequence_length: int, seed: int) -> PackingPlan | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in _ARRAYS}
            report = json.loads(str(stored["report"]))
        return PackingPlan(sequence_length, seed, **arrays, long_documents=LongDocumentsReport(**report))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        # RuntimeError: damage that reads like encryption, or like a compression that zipfile does not know.
        logger.warning("%s is damaged (%s); the packing plan is made again", path, error)
        return None


def _write(path: Path, plan: PackingPlan) -> None:
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                report=np.array(json.dumps(asdict(plan.long_documents))),
                **{name: getattr(plan, name) for name in _ARRAYS},
            )
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
