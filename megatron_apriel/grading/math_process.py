"""The process that runs math-verify: pairs of gold and answer in, how they compare out, one line of JSON each.

In the main thread of a process, because math-verify uses ``signal.alarm``; its memory is bounded, because an expression
of a few letters can make sympy fill any.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

_SECONDS = 5
_BYTES = 4 * 2**30


def compare(gold: str, answer: str) -> str:
    """``equal``, ``different``, ``bad gold``, ``no answer`` or ``slow``."""
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    def read(text: str) -> list[Any]:
        inner = text.strip().removeprefix("$").removesuffix("$").strip("$")
        return parse(f"\\boxed{{{inner}}}", parsing_timeout=_SECONDS, raise_on_error=True)

    try:
        if not (parsed_gold := read(gold)):
            return "bad gold"
    except TimeoutException:
        return "bad gold"
    except Exception:
        return "bad gold"
    try:
        if not (parsed := read(answer)):
            return "no answer"
        is_equal = verify(parsed_gold, parsed, timeout_seconds=_SECONDS, raise_on_error=True)
    except (TimeoutException, MemoryError):
        return "slow"
    except Exception:
        return "no answer"
    return "equal" if is_equal else "different"


def main() -> None:
    """Answer requests until there are no more."""
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    for line in sys.stdin:
        request = json.loads(line)
        sys.stdout.write(json.dumps({"result": compare(request["gold"], request["answer"])}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
