"""What runs inside the sandbox: a program on one input after another, each in a process of its own.

Read from standard input, as JSON: the program, its inputs, the name of a function to call if any, seconds for each
input. Written to standard output, as JSON: what the program wrote for each, up to the first that failed. What is right
never enters the sandbox, so a program cannot tell it to itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_CALL = """

import json as _json, sys as _sys
_arguments = [_json.loads(_line) for _line in _sys.stdin.read().split("\\n") if _line.strip()]
_called = getattr(Solution(), {name!r}) if "Solution" in globals() else globals()[{name!r}]
_result = _called(*_arguments)
print()
print(_json.dumps(list(_result) if isinstance(_result, tuple) else _result))
"""
_MODULES = (
    "string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools",
    "functools", "operator", "io", "sys", "json", "builtins", "typing",
)  # fmt: skip
_COMMON_IMPORTS = "".join(
    [*(f"from {name} import *\n" for name in _MODULES), *(f"import {name}\n" for name in _MODULES),
     "sys.setrecursionlimit(50000)\n"]
)  # fmt: skip
"""What solutions on the sites that the problems come from have without asking."""


def run_all(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The program's output on every input, up to the first on which it fails."""
    text = _COMMON_IMPORTS + request["program"]
    if request["function"]:
        text += _CALL.format(name=request["function"])
    file = Path(tempfile.mkdtemp()) / "solution.py"
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    results: list[dict[str, Any]] = []
    for given in request["inputs"]:
        try:
            done = subprocess.run(
                [sys.executable, "-s", str(file)], input=given.encode("utf-8", "surrogatepass"), capture_output=True,
                timeout=request["seconds"], check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return [*results, {"problem": "time"}]
        if done.returncode and (done.stderr.strip() or done.returncode < 0):  # sys.exit(1) alone is no fault
            words = done.stderr.decode("utf-8", "replace").strip().splitlines()
            return [*results, {"problem": words[-1][:300] if words else f"signal {-done.returncode}"}]
        results.append({"output": done.stdout.decode("utf-8", "replace")})
    return results


if __name__ == "__main__":
    json.dump(run_all(json.loads(sys.stdin.read())), sys.stdout)
