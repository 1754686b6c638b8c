"""llama.cpp's ``llama-server``: for one machine, with or without a GPU; GGUF files are made when first needed.

llama.cpp is found through ``LLAMA_CPP``, the folder of its source, and its server there or on the path. Three things
that it would do otherwise are said to it: how answers are sampled, since it reads no generation config; where an answer
ends, since the end mark is plain text to it; and how many patches an image may have.
"""

from __future__ import annotations

import base64
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from megatron_apriel.data.corpus.processor_files import longest_side
from megatron_apriel.data.raw.turns.chat_markers import RESPONSE_CLOSING
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.hf_directory import SAMPLING
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.sidecars import GENERATION
from megatron_apriel.generate.conversation import Picture
from megatron_apriel.generate.engines.engine import Asked, Engine, GreedyReply, Launch, Service
from megatron_apriel.generate.engines.environments import PROJECT
from megatron_apriel.generate.engines.llama_images import as_trained, most_patches, size_rule
from megatron_apriel.generate.engines.requests import whole_reply
from megatron_apriel.generate.server_messages import body_of

FOLDER = "LLAMA_CPP"
"""Environment variable with the folder of llama.cpp's source."""
CONVERTER, SERVER = "convert_hf_to_gguf.py", "llama-server"
TEXT_FILE, IMAGE_FILE = "text.gguf", "mmproj.gguf"
"""The decoder with tokenizer and template, and what images go through."""

_PLACES = ("build/bin", "bin", ".")
"""Where a build puts the server."""
_NEVER = "\x00"
"""A stop text that no answer has: an empty list of them would be the server's own."""


class Llama(Engine):
    """``llama-server``."""

    name: ClassVar[str] = "llama"
    summary: ClassVar[str] = "llama.cpp, for one machine with or without a GPU"
    setup: ClassVar[str] = f"build llama.cpp, and set {FOLDER} to its folder"
    ready_path: ClassVar[str] = "/health"

    def check(self, service: Service) -> None:
        """Raise what stands against starting it; see :class:`Engine`."""
        folder = _folder()
        if folder is None or not (folder / CONVERTER).is_file():
            said = f"{FOLDER}={folder} has no {CONVERTER}" if folder else f"{FOLDER} is not set"
            raise ConfigError(
                f"{said}: llama.cpp's own converter makes the GGUF files.",
                fix=f"Set {FOLDER} to the folder of llama.cpp's source.",
            )
        if server_program() is None:
            raise ConfigError(
                f"there is no {SERVER} in {folder} nor on the path.",
                fix=f"Build it: cmake -S {folder} -B {folder}/build && cmake --build {folder}/build -t {SERVER}",
            )

    def steps(self, service: Service) -> Sequence[Launch]:
        """The conversion, where the files are not there or the model was written after them."""
        made, given = gguf_directory(service), [file.stat().st_mtime for file in service.directory.iterdir()]
        if (made / TEXT_FILE).is_file() and (made / TEXT_FILE).stat().st_mtime > max(given):
            return ()
        command = [
            *(sys.executable, str(PROJECT / "tools" / "convert_checkpoint.py"), str(service.directory), str(made)),
            *("--to", "gguf", "--llama-cpp", str(_folder() or FOLDER), "--dtype", service.dtype, "--overwrite"),
        ]
        return (Launch(tuple(command)),)

    def launch(self, service: Service) -> Launch:
        """``llama-server`` of the GGUF files."""
        made, tower = gguf_directory(service), service.architecture.tower
        command = [
            str(server_program() or SERVER), "--model", str(made / TEXT_FILE), "--alias", service.name, "--offline",
            "--host", service.host, "--port", str(service.port), "--ctx-size", str(service.context), "--jinja",
            "--reverse-prompt", f"\n{RESPONSE_CLOSING}", *_sampling(service.directory),
        ]  # fmt: skip
        if not service.gpus:
            command += ["--device", "none", "--n-gpu-layers", "0"]
        remarks = [f"the GGUF files lie in {made}"]
        if tower is not None:
            side = longest_side(service.directory, service.architecture) or tower.image_size
            command += ["--mmproj", str(made / IMAGE_FILE)]
            command += ["--image-min-tokens", "1", "--image-max-tokens", str(most_patches(tower.patch_size, side))]
            command += [] if service.gpus else ["--no-mmproj-offload"]
            remarks.append(size_rule(tower.patch_size, side))
        return Launch((*command, *service.further), remarks=tuple(remarks))

    def greedy(self, service: Service, asked: Asked) -> GreedyReply:
        """Ask for tokens; images are sent as training saw them."""
        question, tower = asked.question, service.architecture.tower
        if tower is not None:
            side = longest_side(service.directory, service.architecture) or tower.image_size
            question = as_trained(question, tower.patch_size, side)
        address, body = service.address.removesuffix("/v1"), body_of(question, service.name)
        said: dict[str, Any] = {name: body[name] for name in ("messages", "tools") if name in body}
        text = whole_reply(f"{address}/apply-template", said)["prompt"]
        pictures = [part for turn in question.turns for part in turn.content if isinstance(part, Picture)]
        prompt: Any
        if pictures:
            data = [base64.b64encode(picture.data).decode("ascii") for picture in pictures]
            prompt = {"prompt_string": text, "multimodal_data": data}
        else:
            # The template's <s> was taken out: the server begins every prompt with one.
            prompt = whole_reply(f"{address}/tokenize", {"content": text, "add_special": True, "parse_special": True})[
                "tokens"
            ]
        reply = whole_reply(
            f"{address}/completion",
            {
                "prompt": prompt,
                "n_predict": question.sampling.max_tokens or -1,
                "temperature": 0.0,
                "stop": [_NEVER],
                "return_tokens": True,
                "cache_prompt": False,
            },
        )
        return GreedyReply(_prompt_ids(prompt, asked, reply["tokens_evaluated"]), tuple(reply["tokens"]))


def gguf_directory(service: Service) -> Path:
    """Where a model's GGUF files lie: beside it."""
    return service.directory.with_name(f"{service.directory.name}-gguf-{service.dtype}")


def _folder() -> Path | None:
    said = os.environ.get(FOLDER, "")
    return Path(said).expanduser().resolve() if said else None


def server_program() -> Path | None:
    """llama.cpp's server, in its folder or on the path; None if there is none."""
    folder = _folder()
    for place in _PLACES if folder else ():
        if folder and (folder / place / SERVER).is_file():
            return folder / place / SERVER
    found = shutil.which(SERVER)
    return Path(found) if found else None


def _sampling(directory: Path) -> list[str]:
    """The generation config's choice of answers, where clients make none; what it leaves open is switched off."""
    file = directory / GENERATION
    said = read_json(file) if file.is_file() else SAMPLING
    heat = said.get("temperature", 1.0) if said.get("do_sample") else 0.0
    options = {"--temp": heat, "--top-p": said.get("top_p"), "--top-k": said.get("top_k"), "--min-p": said.get("min_p")}
    off = {"--temp": 1.0, "--top-p": 1.0, "--top-k": 0, "--min-p": 0.0}
    return [word for name, value in options.items() for word in (name, str(off[name] if value is None else value))]


def _prompt_ids(prompt: Any, asked: Asked, evaluated: int) -> tuple[int, ...] | None:
    """Of a prompt with images, llama.cpp reports how many tokens it read, and not which."""
    if isinstance(prompt, list):
        return tuple(prompt)
    read = len(asked.prompt_ids)
    return None if evaluated == read else (*asked.prompt_ids[:evaluated], *[-1] * (evaluated - read))
