"""What comparisons of losses share: a small model, real text that it trains on, and runs in processes of their own.

Runs differ in one thing alone, which their name says. The text is Python's own: documentation and sources of whatever
is installed, in one random order, so that all steps see the same kinds of text.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from megatron_apriel.errors import DataError, ExitCode
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture

SETTINGS = ("layers", "hidden", "sequence_length", "micro_batches", "steps", "peak")
"""Options of every run, which records have too."""
WARM_UP = 0.2
"""Part of the steps over which the learning rate rises; it falls as a cosine to a tenth after that."""
LONGEST = 20_000
"""Characters that are taken of a file, so that no file is a step's whole text."""


def add_run_options(
    parser: argparse.ArgumentParser, *, hidden: int, sequence_length: int, steps: int, peak: float
) -> argparse._ArgumentGroup:
    """Options of the model and its training, with these defaults; returns the group of training."""
    model = parser.add_argument_group("model")
    model.add_argument("--layers", type=int, default=8, help="decoder layers (%(default)s)")
    model.add_argument("--hidden", type=int, default=hidden, help="width, 128 or a multiple of 256 (%(default)s)")
    training = parser.add_argument_group("training")
    training.add_argument("--sequence-length", type=int, default=sequence_length,
                          help="tokens of a micro-batch (%(default)s)")  # fmt: skip
    training.add_argument(
        "--micro-batches", type=int, default=4, help="of a step; fewer than 3 have the same sums reversed (%(default)s)"
    )
    training.add_argument("--steps", type=int, default=steps, help="%(default)s")
    training.add_argument("--peak", type=float, default=peak, help="learning rate after the warm-up (%(default)g)")
    parser.add_argument("--run", metavar="NAME", help=argparse.SUPPRESS)  # one run, in a process of its own
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # allowed without a GPU
    return training


def settings_of(arguments: argparse.Namespace, further: Sequence[str] = ()) -> dict[str, Any]:
    """What the options of a run say, by name."""
    return {name: getattr(arguments, name) for name in (*SETTINGS, *further)}


def architecture_of(arguments: argparse.Namespace, vocabulary: int) -> Architecture:
    """The model of a run."""
    hidden, heads = arguments.hidden, arguments.hidden // 128
    return Architecture(
        DecoderArchitecture(
            hidden, arguments.layers, heads, max(heads // 2, 1), 128, 11 * hidden // 4, vocabulary, rope_theta=1e6
        )
    )


def rate_at(step: int, steps: int, peak: float) -> float:
    """The learning rate of a step, counted from 0."""
    warm = max(round(WARM_UP * steps), 1)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1))))


def real_text() -> Iterator[str]:
    """Sources and documentation of the standard library and of installed packages, the beginning of each file.

    In a random order that is the same wherever the same files are installed: neighbours in a directory are alike, and
    the loss would show which directory a step came from.
    """
    library = Path(json.__file__).parents[1]
    files = [*sorted(library.glob("*.py")), *sorted(library.glob("[a-z]*/*.py"))]
    files += sorted(Path(torch.__file__).parent.rglob("*.py"))
    random.Random(1234).shuffle(files)
    yield from (file.read_text(encoding="utf-8", errors="ignore")[:LONGEST] for file in files)


def words_of_text(count: int, vocabulary: int) -> torch.Tensor:
    """``count`` words and signs of real text, numbered by how often they occur; 0 is all that is rarer."""
    pieces = (piece for text in real_text() for piece in re.findall(r" ?\w+|\s+|[^\w\s]", text))
    words = list(islice(pieces, count))
    if len(words) < count:
        raise DataError(f"only {len(words):,} words of text are installed here, {count:,} are needed.")
    ids = {word: number for number, (word, _) in enumerate(Counter(words).most_common(vocabulary - 1), start=1)}
    return torch.tensor([ids.get(word, 0) for word in words])


def run_all(
    script: str, arguments: argparse.Namespace, names: Sequence[str], tokens: torch.Tensor, further: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Train every run, ``arguments.at_once`` side by side; what :func:`as_run` kept of each, or why it ``failed``.

    Args:
        script: command line of the comparison, which calls :func:`as_run` where ``--run`` is given.
        arguments: of the comparison.
        names: of the runs.
        tokens: that they train on.
        further: names of options that runs have besides :data:`SETTINGS`.
    """
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(max(arguments.at_once, 1)) as pool:
        torch.save(tokens, Path(scratch) / "tokens.pt")
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings_of(arguments, further).items()]
        runs = pool.map(partial(_run, [sys.executable, script, *options], Path(scratch)), names)
        return dict(zip(names, runs, strict=True))


def _run(command: Sequence[str], scratch: Path, name: str) -> dict[str, Any]:
    print(f"{name}: begins", file=sys.stderr, flush=True)
    paths = [f"--tokens={scratch / 'tokens.pt'}", f"--output={scratch}", f"--run={name}"]
    done = subprocess.run([*command, *paths], capture_output=True, text=True, check=False)
    result = scratch / f"{name}.json"
    if done.returncode or not result.exists():
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"{name}: failed: {last[:300]}", file=sys.stderr)
        return {"failed": last}
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    print(f"{name}: done in {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found


def as_run(
    arguments: argparse.Namespace, train: Callable[[argparse.Namespace, torch.Tensor], dict[str, Any]]
) -> ExitCode:
    """In a process that :func:`run_all` started: train on its tokens, and keep what was found, with ``seconds``."""
    tokens = torch.load(arguments.tokens, weights_only=True)
    begun = time.monotonic()
    found = train(arguments, tokens)
    found["seconds"] = time.monotonic() - begun
    (arguments.output / f"{arguments.run}.json").write_text(json.dumps(found), encoding="utf-8")
    return ExitCode.OK
