"""Fuzzing guided by coverage: atheris keeps inputs that make the code do something new, and changes them further.

For the targets whose cases hold one text. Each runs in a process of its own, since libFuzzer, which atheris is, takes a
process for itself, and since the code must be instrumented while it is imported. Half of the inputs come from the
mutators that know JSON, the others from libFuzzer's own. Other files of a case stay honest. What is judged, and what is
kept of failures, is as for cases that are drawn at random; the number of such a case counts inputs, and its files are
the only way to run it again.

atheris is no dependency of this project: ``pip install --target DIR atheris``, and DIR on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

INSTRUMENTED = ("megatron_apriel.config", "megatron_apriel.data", "megatron_apriel.visual_tasks", "yaml", "json")
_MOST_BYTES = 1 << 16


def guided(names: list[str], seconds: float, seed: int, work: Path, kept: Path) -> int:
    """Fuzz the targets that hold one text, one after the other, in equal parts of the time."""
    from .targets import targets

    try:
        import atheris  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        print("atheris is not installed: pip install --target DIR atheris, and put DIR on PYTHONPATH", file=sys.stderr)
        return 2
    chosen = [name for name in names if targets()[name].guided is not None]
    failed = False
    for name in chosen:
        result = work / f"{name}.json"
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.coverage",
            name,
            f"{seconds / len(chosen):.0f}",
            str(seed),
            str(work),
            str(kept),
        ]
        with (work / f"{name}.log").open("w") as log:
            subprocess.run(command, check=False, stdout=log, stderr=log)
        found = json.loads(result.read_text()) if result.is_file() else {}
        print(
            f"{name:<14}" + (", ".join(f"{key} {value}" for key, value in found.items()) or f"did not run: {log.name}"),
            flush=True,
        )
        failed |= not found or bool(found["failed"])
    return int(failed)


def main(name: str, seconds: float, seed: int, work: Path, kept: Path) -> None:
    """Fuzz one target in this process; does not return."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED), enable_loader_override=False):
        from . import findings
        from .case import judged, limited, quiet
        from .file_changes import change_json
        from .targets import targets
        from .worker import honest_files
    quiet()
    target: Any = targets()[name]
    target.open(honest_files(target, work))
    directory, seeds = work / f"guided-{name}", work / f"seeds-{name}"
    seeds.mkdir(exist_ok=True)
    for number in range(40):
        emptied(directory)
        target.mutate(Random(f"{seed} {number}"), directory, int(number > 20))
        if (directory / target.guided).is_file():
            (seeds / str(number)).write_bytes((directory / target.guided).read_bytes()[:_MOST_BYTES])
    counts: dict[str, Any] = {"cases": 0, "accepted": 0, "refused": 0, "failed": 0}
    told = time.monotonic()

    def one(data: bytes) -> None:
        nonlocal told
        emptied(directory)
        target.mutate(Random(0), directory, 0)
        for file in directory.glob(f"{Path(target.guided).stem}*"):
            file.unlink()
        (directory / target.guided).write_bytes(data)
        with limited():
            result = judged(target, directory, honest=False)
        counts["cases"] += 1
        counts[result.outcome] += 1
        if result.outcome == "failed":
            findings.keep(kept, f"{name}-guided", seed, counts["cases"], result, directory)
        if time.monotonic() > told + 5 or result.outcome == "failed":
            told = time.monotonic()
            (work / f"{name}.json").write_text(json.dumps({**counts, "CPU s": round(time.process_time())}))

    def mutator(data: bytes, most: int, number: int) -> bytes:
        random = Random(number)
        if random.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return change_json(random, data)[0][:most]

    options = [
        f"-max_total_time={seconds:.0f}",
        f"-seed={seed}",
        f"-max_len={_MOST_BYTES}",
        "-rss_limit_mb=4096",
        "-timeout=60",
    ]
    atheris.Setup([name, *options, f"-artifact_prefix={work}/", str(seeds)], one, custom_mutator=mutator)
    atheris.Fuzz()


def emptied(directory: Path) -> None:
    """Make the directory of a case anew."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]), Path(sys.argv[5]))
