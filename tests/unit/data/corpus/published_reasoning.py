"""Published sets whose answers have reasoning: in tags, in fields and in parts."""

from __future__ import annotations

from typing import Any

from tests.unit.data.corpus.published_set import Published, one
from tests.unit.data.corpus.written_documents import chat, said, system, user

REASONED = chat(user("6+6?"), said("12", "Six and six make twelve."))


def reasoned(answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "6+6?"}, {"role": "assistant", "content": answer, **more}]}


REASONING: dict[str, Published] = {
    "OpenThoughts": one(
        {"system": "Think.",
         "conversations": [{"from": "user", "value": "6+6?"},
                           {"from": "assistant",
                            "value": "<|begin_of_thought|>\n\nSix and six make twelve.\n\n<|end_of_thought|>\n\n"
                                     "<|begin_of_solution|>\n\n12\n\n<|end_of_solution|>"}]},
        chat(system("Think."), user("6+6?"), said("12", "Six and six make twelve.")),
    ),
    "DeepSeek's tags": one(reasoned("<think>\nSix and six make twelve.\n</think>\n\n12"), REASONED),
    "only the closing tag": one(reasoned("Six and six make twelve.\n</think>\n\n12"), REASONED),
    "Magistral": one(reasoned("[THINK]Six and six make twelve.[/THINK]12"), REASONED),
    "reasoning and answer tags": one(
        reasoned("<reasoning>\nSix and six make twelve.\n</reasoning>\n<answer>\n12\n</answer>"), REASONED
    ),
    "Kimi": one(reasoned("◁think▷Six and six make twelve.◁/think▷12"), REASONED),
    "Cohere": one(
        reasoned("<|START_THINKING|>Six and six make twelve.<|END_THINKING|><|START_RESPONSE|>12<|END_RESPONSE|>"),
        REASONED,
    ),
    "Seed": one(reasoned("<seed:think>Six and six make twelve.</seed:think>12"), REASONED),
    "gpt-oss": one(
        reasoned("<|channel|>analysis<|message|>Six and six make twelve.<|end|><|start|>assistant<|channel|>final"
                 "<|message|>12<|return|>"),
        REASONED,
    ),
    "HuatuoGPT-o1": one(
        reasoned("## Thinking\n\nSix and six make twelve.\n\n## Final Response\n\n12"), REASONED
    ),
    "Granite": one(
        reasoned("Here is my thought process: Six and six make twelve.\n\nHere is my response: 12"), REASONED
    ),
    "s1's text": one(
        reasoned("<|im_start|>think\nSix and six make twelve.\n<|im_start|>answer\n12<|im_end|>"), REASONED
    ),
    "Gemma's channel": one(reasoned("<|channel>thought\nSix and six make twelve.<channel|>12"), REASONED),
    "Open WebUI's fold": one(
        reasoned('<details type="reasoning" done="true">\n<summary>Thought for 3 seconds</summary>\n> Six and six make '
                 "twelve.\n</details>\n12"), REASONED
    ),
    "a name before the tag": one(reasoned("<xai:thinking>Six and six make twelve.</xai:thinking>12"), REASONED),
    "Apertus": one(reasoned("<|inner_prefix|>Six and six make twelve.<|inner_suffix|>12"), REASONED),
    "Unsloth's GRPO": one(
        reasoned("<start_working_out>Six and six make twelve.<end_working_out><SOLUTION>12</SOLUTION>"), REASONED
    ),
    "scratchpad and answer": one(
        reasoned("<scratchpad>Six and six make twelve.</scratchpad><answer>12</answer>"), REASONED
    ),
    "analysis and answer": one(
        reasoned("<analysis>Six and six make twelve.</analysis>\n<answer>12</answer>"), REASONED
    ),
    "small letters in brackets": one(reasoned("[think]Six and six make twelve.[/think]12"), REASONED),
    "tags with spaces": one(reasoned("< think >Six and six make twelve.</ think >12"), REASONED),
    "an empty element": one(reasoned("<think/>12"), chat(user("6+6?"), said("12"))),
    "LLaVA-CoT": one(
        reasoned("<SUMMARY>Add.</SUMMARY>\n\n<CAPTION>Two sixes.</CAPTION>\n\n<REASONING>Twelve.</REASONING>\n\n"
                 "<CONCLUSION>12</CONCLUSION>"),
        chat(user("6+6?"), said("12", "Add.\n\nTwo sixes.\n\nTwelve.")),
    ),
    "Mistral's parts": one(
        {"messages": [{"role": "user", "content": "6+6?"},
                      {"role": "assistant", "content": [
                          {"type": "thinking", "thinking": [{"type": "text", "text": "Six and six make twelve."}],
                           "closed": True},
                          {"type": "text", "text": "12"}]}]},
        REASONED,
        {},
    ),
    "vLLM's field and tags": one(
        reasoned("<think>Six and six make twelve.</think>12", reasoning_content="Six and six make twelve."), REASONED
    ),
    "OpenRouter's field": one(reasoned("12", reasoning="Six and six make twelve."), REASONED, {}),
    "OpenRouter's details": one(
        reasoned("12", reasoning_details=[{"type": "reasoning.text", "text": "Six and six make twelve.", "index": 0}]),
        REASONED,
        {},
    ),
    "LiteLLM's blocks": one(
        reasoned("12", thinking_blocks=[{"type": "thinking", "thinking": "Six and six make twelve."}]),
        REASONED,
        {},
    ),
    "reasoning steps of a record": one(
        {"question": "6+6?", "reasoning_steps": ["Six and six", "make twelve."], "answer": "12"},
        chat(user("6+6?"), said("12", "Six and six\n\nmake twelve.")),
        {},
    ),
    "behind a preamble": one(
        reasoned("Gladly! <think>Six and six make twelve.</think>12"),
        chat(user("6+6?"), said("Gladly!\n12", "Six and six make twelve.")),
    ),
    "s1K": one(
        {"question": "6+6?", "solution": "12", "thinking_trajectories": ["Six and six make twelve."], "attempt": "12",
         "cot_type": "math"},
        REASONED,
        {"solution": 1, "cot_type": 1},
    ),
    "medical-o1": one(
        {"Question": "6+6?", "Complex_CoT": "Six and six make twelve.", "Response": "12"}, REASONED, {}
    ),
    "reasoning beside messages": one(
        {**reasoned("12"), "reasoning": "Six and six make twelve."}, REASONED, {}
    ),
    "reasoning of an earlier turn is not shown": one(
        {"messages": [{"role": "user", "content": "5+5?"},
                      {"role": "assistant", "content": "<think>Five and five.</think>10"},
                      {"role": "user", "content": "6+6?"}, {"role": "assistant", "content": "12"}]},
        chat(user("5+5?"), said("10"), user("6+6?"), said("12")),
    ),
    "NuminaMath": one(
        {"source": "own", "problem": "6+6?", "solution": "12",
         "messages": [{"role": "user", "content": "6+6?"}, {"role": "assistant", "content": "12"}]},
        chat(user("6+6?"), said("12")),
        {"source": 1, "problem": 1, "solution": 1},
    ),
    "OpenMathReasoning": one(
        {"problem": "6+6?", "generated_solution": "<think>\nSix and six make twelve.\n</think>\n12",
         "expected_answer": "12"},
        REASONED,
        {"expected_answer": 1},
    ),
}  # fmt: skip
