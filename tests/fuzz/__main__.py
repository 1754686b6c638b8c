"""Change honest files at random, read them as users do, and tell what ends in a traceback or a wrong result."""

from __future__ import annotations

import argparse
import faulthandler
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

EXAMPLES = """
examples:
  # the whole run: two hours on two cores; what fails is kept with its traceback
  python -m tests.fuzz --minutes 120 --processes 2 --findings /tmp/findings

  # ten minutes of two targets with other cases than the last time
  python -m tests.fuzz --minutes 10 --targets images,tars --seed 7

  # a case that failed, again: what was changed, what it ended in, and where its files are
  python -m tests.fuzz --target images --case 1000123 --seed 7

  # guided by what the code does (needs the package atheris; for targets that read one text)
  python -m tests.fuzz --coverage --targets stages,chat --minutes 30

A case is a function of target, seed and number. "refused" is one of the project's errors, "accepted" a result that
equals an independent reading. Anything else is a failure: another exception, a crash, a result that differs, waiting
for what does not come, more than 10 s of processor time or 512 MiB of memory. The exit code is 1 if there was any.
"""


def _parser() -> argparse.ArgumentParser:
    from .targets import targets

    listed = "\n".join(f"  {name:<14}{target.about}" for name, target in targets().items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        epilog=f"targets:\n{listed}\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--targets", metavar="A,B", help="only these (default: all)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="decides every case (default: %(default)s)")
    parser.add_argument(
        "--findings", type=Path, metavar="DIR", help="where failing inputs are kept (default: none are)"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="for honest files and cases (default: a temporary one)"
    )
    many = parser.add_argument_group("many cases")
    many.add_argument("--minutes", type=float, default=10, metavar="M", help="how long (default: %(default)s)")
    many.add_argument("--processes", type=int, default=2, metavar="N", help="at a time (default: %(default)s)")
    many.add_argument("--cases", type=int, metavar="N", help="the first N of each target instead, in this process")
    many.add_argument("--coverage", action="store_true", help="let atheris choose the inputs, one target after another")
    one = parser.add_argument_group("one case")
    one.add_argument("--target", metavar="NAME", help="of the case")
    one.add_argument("--case", type=int, metavar="N", help="its number; 0 is the honest files")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    from .case import quiet

    quiet()
    from .targets import targets

    parser = _parser()
    arguments = parser.parse_args(argv)
    names = [arguments.target] if arguments.target else (arguments.targets or ",".join(targets())).split(",")
    for name in names:
        if name not in targets():
            parser.error(f"no target {name!r}; there are {', '.join(targets())}")
    if (arguments.target is None) != (arguments.case is None):
        parser.error("--target and --case go together; several targets are chosen with --targets")
    work = arguments.work or Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        if arguments.case is not None:
            return _one(arguments.target, arguments.seed, arguments.case, work)
        if arguments.cases is not None:
            return _few(names, arguments.seed, arguments.cases, work)
        if arguments.coverage:
            from .coverage import guided

            return guided(names, arguments.minutes * 60, arguments.seed, work, arguments.findings or work / "findings")
        return _many(names, arguments, work)
    finally:
        if arguments.work is None and arguments.case is None:
            shutil.rmtree(work, ignore_errors=True)


def _one(name: str, seed: int, case: int, work: Path) -> int:
    from .case import run_case
    from .run import WAIT_SECONDS
    from .targets import targets
    from .worker import honest_files

    target = targets()[name]
    target.open(honest_files(target, work))
    faulthandler.dump_traceback_later(WAIT_SECONDS, exit=True)
    result = run_case(target, seed, case, work / "case")
    faulthandler.cancel_dump_traceback_later()
    print(f"{name}, case {case}, seed {seed}: {result.outcome}\nchanges: {result.changes}\nfiles: {work / 'case'}\n")
    print(result.signature + "\n" + result.text)
    return result.outcome == "failed"


def _few(names: list[str], seed: int, cases: int, work: Path) -> int:
    from .case import run_case
    from .targets import targets
    from .worker import honest_files

    failures = 0
    for name in names:
        target, outcomes = targets()[name], Counter[str]()
        target.open(honest_files(target, work))
        for case in range(cases):
            result = run_case(target, seed, case, work / "case")
            outcomes[result.outcome] += 1
            if result.outcome == "failed":
                failures += 1
                print(f"{name}, case {case}, seed {seed}: {result.signature}\nchanges: {result.changes}\n{result.text}")
        print(
            f"{name:<14}" + ", ".join(f"{outcomes[kind]} {kind}" for kind in ("accepted", "refused", "failed")),
            flush=True,
        )
    return failures > 0


def _many(names: list[str], arguments: argparse.Namespace, work: Path) -> int:
    from .run import Run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes end with this one
    run = Run(names, arguments.processes, arguments.seed, work, arguments.findings or work / "findings")
    try:
        run.go(arguments.minutes * 60)
    except KeyboardInterrupt:
        print("interrupted")
    print(run.table())
    return any(tally.failures for tally in run.tallies.values())


if __name__ == "__main__":
    sys.exit(main())
