"""Options that the benchmarks' command lines share."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from benchmarks.report import RESULTS
from megatron_apriel.errors import ConfigError, ExitCode


def add_output_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, benchmark: str, endings: str = ".json and .md"
) -> None:
    """Where the results of a benchmark go, and what they say of the code."""
    files = f"{benchmark}-HARDWARE-COMMIT-TIME{endings}"
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR",
                        help=f"directory for {files} (benchmarks/results)")  # fmt: skip
    parser.add_argument("--commit", default="", metavar="HASH", help="to be recorded where there is no git repository")


def require_gpu(measured: str) -> None:
    """Raises ConfigError where there is no GPU; ``measured`` is what it is needed for."""
    if not torch.cuda.is_available():
        raise ConfigError("there is no CUDA device here.", f"{measured} on a GPU.", "Run it on a machine with one.")


def wrong_usage(error: ConfigError) -> int:
    """Say what is wrong with the options, before anything is measured; returns the exit code of that."""
    print(f"ConfigError: {error}", file=sys.stderr)
    return ExitCode.USAGE
