"""vLLM beside transformers: the same prompts and the same greedy tokens."""

from __future__ import annotations

import pytest
from served_conversations import TOOLS, picture

from megatron_apriel.generate.conversation import Question, Sampling, ToolCall, Turn
from megatron_apriel.generate.engines.comparison import compare, reference_cases
from megatron_apriel.generate.engines.engine import Asked, Service
from megatron_apriel.generate.engines.vllm import Vllm
from megatron_apriel.generate.transformers_model import TransformersModel

pytestmark = pytest.mark.serving

CALL = ToolCall("weather", '{"city": "Oslo"}')
LEARNED = {
    "text": ([Turn("user", ("Two and two?",))], ()),
    "image": ([Turn("user", (picture(), "What is it?"))], ()),
    "call": ([Turn("user", ("Weather?",))], TOOLS),
    "result": ([Turn("user", ("Weather?",)), Turn("assistant", (), (CALL,)), Turn("tool", ("rain",))], TOOLS),
}


def test_every_question_of_the_comparison_is_answered_alike(service: Service, reference: TransformersModel) -> None:
    for case in reference_cases(reference, service.architecture):
        verdict = compare(case, Vllm().greedy(service, case.asked), 0.001)
        assert verdict.alike, verdict


@pytest.mark.parametrize("name", LEARNED)
def test_what_was_learned_is_answered_to_its_end(name: str, service: Service, reference: TransformersModel) -> None:
    turns, tools = LEARNED[name]
    question = Question(turns, tools, Sampling(greedy=True, max_tokens=250))
    prompt, ids, _ = reference.greedy(question)
    reply = Vllm().greedy(service, Asked(name, question, tuple(prompt), ""))
    assert (reply.prompt_ids, reply.ids) == (tuple(prompt), tuple(ids))
    assert reference.text_of(ids).endswith("[END FINAL RESPONSE]\n<|end|>\n</s>")
