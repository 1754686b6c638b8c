"""The parsers' questions about tokens, in vLLM's environment: has the reasoning ended, and which tokens are of it?"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from megatron_apriel.generate.engines.environments import PROJECT, check_made, program_in
from megatron_apriel.generate.engines.vllm import ENVIRONMENT

pytestmark = pytest.mark.serving

SCRIPT = """
import json, sys
from vllm.tokenizers import get_tokenizer
from megatron_apriel.generate.vllm_plugin import AprielReasoningParser

tokenizer = get_tokenizer(sys.argv[1], tokenizer_mode="hf")
parser = AprielReasoningParser(tokenizer)
ids = lambda text: tokenizer.encode(text, add_special_tokens=False)
prompt = "<s><|user|>\\n{}\\n<|end|>\\n<|assistant|>\\nHere are my reasoning steps:\\n"
marker = "[BEGIN FINAL RESPONSE]"
long = ids("word " * 3000)
found = {
    "prompt": parser.is_reasoning_end(ids(prompt.format("Hi"))),
    "marker before the turn": parser.is_reasoning_end(ids(prompt.format(marker))),
    "response began": parser.is_reasoning_end(ids(prompt.format("Hi") + "Hm.\\n" + marker)),
    "long response": parser.is_reasoning_end(ids(prompt.format("Hi") + "Hm.\\n" + marker) + long),
    "long reasoning": parser.is_reasoning_end(ids(prompt.format(marker)) + long),
}
answer = ids("Hm [BEGIN\\n" + marker + "\\nSo.")
start = ids(prompt.format(marker))
found["steps"] = [
    parser.is_reasoning_end_streaming(start + answer[:n], answer[n - 1:n]) for n in range(1, len(answer) + 1)
]
content = parser.extract_content_ids(answer)
found["content"] = tokenizer.decode(content)
found["counts"] = [parser.count_reasoning_tokens(answer) + len(content), len(answer)]
found["no response"] = parser.count_reasoning_tokens(answer[:5])
json.dump(found, sys.stdout)
"""


def test_tokens_of_the_reasoning(rigged: Path) -> None:
    check_made(ENVIRONMENT, "python", "make vllm")
    done = subprocess.run(
        [program_in(ENVIRONMENT, "python"), "-c", SCRIPT, rigged],
        env={"PYTHONPATH": str(PROJECT), "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert not found["prompt"] and not found["marker before the turn"] and not found["long reasoning"]
    assert found["response began"] and found["long response"]
    steps = found["steps"]
    assert steps == sorted(steps) and steps[-1] and not steps[len(steps) // 2]
    assert found["content"] == "\nSo."
    assert found["counts"][0] == found["counts"][1] and found["no response"] == 5
