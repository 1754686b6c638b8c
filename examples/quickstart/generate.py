"""Load an exported checkpoint with transformers alone, and let it answer: a question, and one about an image.

usage: generate.py MODEL [--prompt TEXT] [--image FILE [--image-prompt TEXT]] [--max-new-tokens N]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from megatron_apriel.command_line import CommandLine
from megatron_apriel.terminal import note, say


def answer(
    model: LlavaForConditionalGeneration, processor: AutoProcessor, prompt: str, image: Path | None, most: int
) -> str:
    """The model's greedy answer to one question."""
    parts: list[dict[str, str]] = [{"type": "text", "text": prompt}]
    images = [Image.open(image).convert("RGB")] if image else None
    if image:
        parts.insert(0, {"type": "image"})
    text = processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    inputs = processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        tokens = model.generate(**inputs, max_new_tokens=most, do_sample=False)
    return processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def main(argv: list[str] | None = None) -> int:
    parser = CommandLine(description=__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--prompt", default="What is json.dumps for in Python?")
    parser.add_argument("--image", type=Path)
    parser.add_argument("--image-prompt", default="What does this image show?")
    parser.add_argument("--max-new-tokens", type=int, default=40)
    arguments = parser.parse_args(argv)
    processor = AutoProcessor.from_pretrained(arguments.model)
    model, report = LlavaForConditionalGeneration.from_pretrained(
        arguments.model, dtype=torch.float32, output_loading_info=True
    )
    problems = {name: list(found) for name, found in report.items() if found}
    if problems:
        note(f"transformers did not take the checkpoint as it is: {problems}")
        return 1
    questions = [(arguments.prompt, None)]
    if arguments.image:
        questions.append((arguments.image_prompt, arguments.image))
    for prompt, image in questions:
        say(f"> {prompt}{f' ({image.name})' if image else ''}")
        say(*answer(model, processor, prompt, image, arguments.max_new_tokens).strip().split("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
