"""Packing plans kept on disk, so that a resumed run, and every rank of a host, finds them made.

A plan is one ``.npz`` file named by the hash of everything that it depends on; it can be deleted at any time. It lies
in ``.packing`` in the corpus's directory, or in ``$XDG_CACHE_HOME/megatron_apriel/packing`` where that cannot be
written. Files appear whole, by renaming. Ranks that start together take turns behind a file lock. Where the file system
has no locks, or where somebody holds one for longer than a rank is patient, they do the same work at the same time,
with the same result.

Others may write to the directory. So a plan is only used if it is one of its corpus (``plan_checks.py``); anything else
is named, with the reason, and made again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.config.choices import LongDocuments
from megatron_apriel.data.corpus.array_header import read_header
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.cutting import NO_DOCUMENTS, CutDocuments, cut_documents
from megatron_apriel.data.loading.packing import PackingPlan, document_dtype, make_plan
from megatron_apriel.data.loading.plan_checks import check_plan, number_of_pieces
from megatron_apriel.errors import printable
from megatron_apriel.inputs import open_input
from megatron_apriel.locks import HeldError, take_lock
from megatron_apriel.output_files import whole_file
from megatron_apriel.terminal import named_logger

ALGORITHM = 1
"""Part of the hash: counts up when the same inputs would give another plan."""

LOCK_PATIENCE_S = 30.0
"""How long another process that makes the same plan is waited for."""

_NO_PLAN = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, OverflowError, MemoryError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip
"""What reading a damaged plan raises. RuntimeError: damage that reads like encryption or an unknown compression."""
_BYTES_OF_PIECE, _SLACK_BYTES = 28, 1 << 16
"""The most that a plan's file has for a piece, which may be alone in its pack, and for what is not numbers."""

logger = named_logger(__name__)


def cached_plan(
    corpus: Corpus,
    sequence_length: int,
    seed: int,
    long_documents: LongDocuments,
    left_out: NDArray[np.int64] = NO_DOCUMENTS,
) -> PackingPlan:
    """:func:`~megatron_apriel.data.loading.packing.make_plan`, read from disk where it was made before.

    Raises what ``make_plan`` raises; a cache that is damaged, cannot be written or is locked is never an error. Then
    the plan is made again: every process that makes it gets the same.
    """
    name = f"{plan_key(corpus, sequence_length, seed, long_documents, left_out)}.npz"
    cut = cut_documents(corpus, sequence_length, long_documents, left_out)
    directories = cache_directories(corpus)
    for directory in directories:
        plan = _read(directory / name, corpus, cut, sequence_length, seed)
        if plan is not None:
            return plan
    for directory in directories:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with take_lock(directory / f"{name}.lock", LOCK_PATIENCE_S):
                plan = _read(directory / name, corpus, cut, sequence_length, seed)
                if plan is None:
                    plan = make_plan(corpus, sequence_length, seed, long_documents, left_out)
                    _write(directory / name, plan, corpus, cut)
            return plan
        except HeldError as error:
            logger.warning("%s after %g s; the packing plan is made without it", printable(error), LOCK_PATIENCE_S)
            break
        except OSError as error:
            logger.info("packing plans cannot be kept in %s: %s", directory, error)
    return make_plan(corpus, sequence_length, seed, long_documents, left_out)


def cache_directories(corpus: Corpus) -> tuple[Path, Path]:
    """Where plans of a corpus are kept, first choice first."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - Path's own raises where there is no home
    return corpus.path / ".packing", Path(home) / "megatron_apriel" / "packing"


def plan_key(
    corpus: Corpus,
    sequence_length: int,
    seed: int,
    long_documents: LongDocuments,
    left_out: NDArray[np.int64] = NO_DOCUMENTS,
) -> str:
    """Hash of everything that a plan depends on."""
    digest = hashlib.sha256(json.dumps([ALGORITHM, sequence_length, seed, long_documents]).encode())
    lengths = np.ascontiguousarray(corpus.documents["tokens"])
    digest.update(lengths)
    if lengths.max() > sequence_length:
        for column in ("document", "start", "rows", "columns"):
            digest.update(np.ascontiguousarray(corpus.image_rows[column]))
    digest.update(left_out)
    return digest.hexdigest()[:32]


def _read(path: Path, corpus: Corpus, cut: CutDocuments, sequence_length: int, seed: int) -> PackingPlan | None:
    try:
        with open_input(path) as file:
            most = _SLACK_BYTES + _BYTES_OF_PIECE * number_of_pieces(cut)
            if (size := os.fstat(file.fileno()).st_size) > most:
                raise ValueError(f"it has {size:,} bytes, and a plan of this corpus at most {most:,}")
            with zipfile.ZipFile(file) as archive:
                arrays = {name: _array(archive, name, dtype, 1) for name, dtype in _dtypes(corpus).items()}
                report = _report(cut)
                if (found := _letters(_array(archive, "report", report.dtype, 0))) != _letters(report):
                    raise ValueError(f"it reports {found}, and the corpus gives {report}")
        plan = PackingPlan(sequence_length, seed, **arrays, long_documents=cut.report)
        check_plan(plan, corpus, cut)
        return plan
    except FileNotFoundError:
        return None
    except _NO_PLAN as error:
        logger.warning(
            "%s is damaged or no plan of its corpus (%s); the packing plan is made again",
            printable(path),
            printable(error),
        )
        return None


def _dtypes(corpus: Corpus) -> dict[str, np.dtype[np.integer]]:
    """The arrays of a plan in its file, and their types."""
    narrow, wide = np.dtype(np.int32), np.dtype(np.int64)
    documents = document_dtype(corpus)
    return {"documents": documents, "starts": narrow, "lengths": narrow, "offsets": wide, "tokens": narrow}


def _report(cut: CutDocuments) -> NDArray[np.str_]:
    return np.array(json.dumps(asdict(cut.report)))


def _letters(text: NDArray[np.str_]) -> str:
    """NumPy's own conversion does not look whether they are letters. Raises UnicodeDecodeError."""
    return text.tobytes().decode(f"utf-32-{sys.byteorder[0]}e")


def _array(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], dimensions: int) -> NDArray[Any]:
    """An array of a plan's file. Its header must fit what is stored, so that no more memory is taken than that."""
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    with archive.open(member) as stream:
        found, shape = read_header(stream)
        size = stream.tell() + math.prod(shape) * dtype.itemsize
    if found != dtype or len(shape) != dimensions or min(shape, default=0) < 0 or size != member.file_size:
        raise ValueError(f"{name} holds {shape} of {found} in {member.file_size:,} bytes, not {dtype}")
    with archive.open(member) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _write(path: Path, plan: PackingPlan, corpus: Corpus, cut: CutDocuments) -> None:
    with whole_file(path) as partial:
        np.savez(partial, report=_report(cut), **{name: getattr(plan, name) for name in _dtypes(corpus)})
        partial.chmod(0o644)  # for all who read the corpus, whatever this process's mask
