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
    "gpt-oss without its special tokens": one(
        reasoned("analysisSix and six make twelve.assistantfinal12"), REASONED
    ),
    "K2": one(reasoned("<think_faster>\nSix and six make twelve.\n</think_faster>\n12"), REASONED),
    "Pangu": one(reasoned("[unused16]Six and six make twelve.[unused17]12"), REASONED),
    "what Ollama prints": one(
        reasoned("Thinking...\nSix and six make twelve.\n...done thinking.\n\n12"), REASONED
    ),
    "CoT": one({"question": "6+6?", "CoT": "Six and six make twelve.", "answer": "12"}, REASONED),
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
    "Llama-Nemotron": one(
        {"input": [{"role": "user", "content": "6+6?"}], "output": "<think>\nSix and six make twelve.\n</think>\n\n12",
         "reasoning": "on", "system_prompt": "detailed thinking on", "used_in_training": "Ultra"},
        chat(system("detailed thinking on"), user("6+6?"), said("12", "Six and six make twelve.")),
        {"reasoning": 1, "used_in_training": 1},
    ),
    "AM's distilled answers": one(
        {"messages": [{"role": "user", "content": "6+6?", "info": {"reference_answer": "12", "think_content": None}},
                      {"role": "assistant",
                       "content": "<think>Six and six make twelve.</think>\n<answer>12</answer>",
                       "info": {"think_content": "Six and six make twelve.", "answer_content": "12"}}]},
        REASONED,
        {"messages.info.reference_answer": 1, "messages.info.think_content": 1, "messages.info.answer_content": 1},
    ),
    "R1-Distill-SFT": one(
        {"problem": "6+6?", "solution": "Add: 12.",
         "reannotated_assistant_content": "<think>\nSix and six make twelve.\n</think>\n\n12",
         "reannotated_messages": [{"role": "user", "content": "6+6?"},
                                  {"role": "assistant",
                                   "content": "<think>\nSix and six make twelve.\n</think>\n\n12"}]},
        REASONED,
        {"solution": 1, "reannotated_messages.role": 2, "reannotated_messages.content": 2},
    ),
    "GeneralThought": one(
        {"question": "6+6?", "reference_answer": "12", "model_answer": "12",
         "model_reasoning": "Six and six make twelve.",
         "prev_messages": [{"role": "user", "content": "5+5?"}, {"role": "assistant", "content": "10"}]},
        chat(user("5+5?"), said("10"), user("6+6?"), said("12", "Six and six make twelve.")),
        {"reference_answer": 1},
    ),
    "Chinese R1 data": one(
        {"input": "6+6?", "reasoning_content": "Six and six make twelve.", "content": "12", "score": 10},
        REASONED,
        {"score": 1},
    ),
    "SYNTHETIC-1": one(
        {"prompt": "6+6?", "gold_standard_solution": "12", "score": 1.0,
         "llm_response": "<think>\nSix and six make twelve.\n</think>\n\n12"},
        REASONED,
        {"gold_standard_solution": 1, "score": 1},
    ),
    "opened at the end of the prompt": one(
        {"prompt": "6+6?\n<think>\n", "completion": "Six and six make twelve.\n</think>\n\n12"}, REASONED, {}
    ),
    "a reflection inside of the thinking": one(
        reasoned("<thinking>\nSix and six.\n<reflection>\nSure.\n</reflection>\n</thinking>\n<output>\n12\n</output>"),
        chat(user("6+6?"), said("12", "Six and six.\n<reflection>\nSure.\n</reflection>")),
    ),
    "a summary of reasoning (Responses)": one(
        reasoned("12", reasoning={"effort": "high", "summary": [{"type": "summary_text",
                                                                 "text": "Six and six make twelve."}]}),
        REASONED,
        {},
    ),
    "what was seen, thought and answered (Visionary-R1)": one(
        reasoned("<info>Two sixes.</info>\n<think>Twelve.</think>\n<answer>12</answer>"),
        chat(user("6+6?"), said("12", "<info>Two sixes.</info>\n\nTwelve.")),
    ),
    "a plan and an answer": one(
        reasoned("<plan>Add.</plan>\n<verify>Yes.</verify>\n<answer>12</answer>"),
        chat(user("6+6?"), said("12", "<plan>Add.</plan>\n<verify>Yes.</verify>")),
    ),
    "a quiz in XML": one(
        reasoned("<question>6+6?</question>\n<answer>12</answer>"),
        chat(user("6+6?"), said("<question>6+6?</question>\n<answer>12</answer>")),
    ),
    "LLaVA-CoT without an image, in small letters": one(
        reasoned("<summary>Add.</summary>\n<reasoning>Twelve.</reasoning>\n<conclusion>12</conclusion>"),
        chat(user("6+6?"), said("12", "Add.\n\nTwelve.")),
    ),
    "a chain of thought and a final answer": one(
        {"question": "6+6?", "chain_of_thought": "Six and six make twelve.", "final_answer": "12"}, REASONED, {}
    ),
}  # fmt: skip
