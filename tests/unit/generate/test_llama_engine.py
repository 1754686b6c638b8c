"""The options of llama.cpp's server, when its files are made, and the requests to it."""

from __future__ import annotations

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.generate.conversation import Question, Sampling, Turn
from megatron_apriel.generate.engines import llama
from megatron_apriel.generate.engines.comparison import questions
from megatron_apriel.generate.engines.engine import Asked, Service
from megatron_apriel.generate.engines.table import ENGINES
from megatron_apriel.testing.rigged_models import rigged_architecture

ENGINE = ENGINES["llama"]


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Service:
    """A model, and a built llama.cpp."""
    folder = tmp_path / "llama.cpp"
    (folder / "build" / "bin").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").touch()
    (folder / "build" / "bin" / "llama-server").touch()
    monkeypatch.setenv("LLAMA_CPP", str(folder))
    (tmp_path / "model").mkdir()
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(sampling))
    return Service(tmp_path / "model", Kind.HF, rigged_architecture(), "name", context=2048)


def test_the_server_is_told_what_it_would_do_otherwise(service: Service, tmp_path: Path) -> None:
    ENGINE.check(service)
    launch = ENGINE.launch(service)
    assert launch.command[0] == str(tmp_path / "llama.cpp" / "build" / "bin" / "llama-server")
    words = list(launch.command)

    def after(name: str) -> str:
        return words[words.index(name) + 1]

    assert after("--model") == str(tmp_path / "model-gguf-float32" / "text.gguf")
    assert after("--mmproj") == str(tmp_path / "model-gguf-float32" / "mmproj.gguf")
    assert after("--reverse-prompt") == "\n[END FINAL RESPONSE]"
    assert (after("--temp"), after("--top-p"), after("--top-k"), after("--min-p")) == ("0.6", "0.9", "0", "0.0")
    assert (after("--image-min-tokens"), after("--image-max-tokens")) == ("1", "256")
    assert after("--device") == "none" and "--no-mmproj-offload" in words and "--jinja" in words
    assert any("both sides are multiples of 16 pixels and at most 256" in remark for remark in launch.remarks)


def test_a_text_model_has_no_images(service: Service) -> None:
    text = Service(service.directory, Kind.HF, rigged_architecture(tower=False), "name", gpus=1, further=("-np", "2"))
    (service.directory / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    words = list(ENGINE.launch(text).command)
    assert not {"--mmproj", "--image-max-tokens", "--device", "--no-mmproj-offload"} & set(words)
    assert words[words.index("--temp") + 1] == "0.0" and words[-2:] == ["-np", "2"]


def test_files_are_made_where_they_are_missing_or_older(service: Service, tmp_path: Path) -> None:
    (step,) = ENGINE.steps(service)
    assert step.command[2:4] == (str(service.directory), str(tmp_path / "model-gguf-float32"))
    assert " ".join(step.command[4:]) == f"--to gguf --llama-cpp {tmp_path / 'llama.cpp'} --dtype float32 --overwrite"
    made = tmp_path / "model-gguf-float32"
    made.mkdir()
    (made / "text.gguf").touch()
    os.utime(made / "text.gguf", (2e9, 2e9))
    assert not ENGINE.steps(service)
    os.utime(service.directory / "generation_config.json", (3e9, 3e9))
    assert len(ENGINE.steps(service)) == 1


def test_what_is_missing_is_named(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "llama.cpp" / "build" / "bin" / "llama-server").unlink()
    with pytest.raises(ConfigError, match=r"no llama-server in (?s:.*)cmake --build .* -t llama-server"):
        ENGINE.check(service)
    (tmp_path / "llama.cpp" / "convert_hf_to_gguf.py").unlink()
    with pytest.raises(ConfigError, match=r"LLAMA_CPP=.* has no convert_hf_to_gguf\.py"):
        ENGINE.check(service)
    monkeypatch.delenv("LLAMA_CPP")
    with pytest.raises(ConfigError, match="LLAMA_CPP is not set"):
        ENGINE.check(service)


class Replies:
    """Answers as llama-server does, and keeps what it was asked."""

    def __init__(self, evaluated: int) -> None:
        self.evaluated = evaluated
        self.asked: dict[str, dict[str, Any]] = {}

    def __call__(self, address: str, body: dict[str, Any]) -> dict[str, Any]:
        path = address.removeprefix("http://127.0.0.1:8000")
        self.asked[path] = body
        return {
            "/apply-template": {"prompt": "the prompt"},
            "/tokenize": {"tokens": [1, 5, 6]},
            "/completion": {"tokens": [7, 2], "tokens_evaluated": self.evaluated},
        }[path]


def test_a_text_is_asked_by_its_tokens(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = Replies(3)
    monkeypatch.setattr(llama, "whole_reply", replies)
    question = Question((Turn("user", ("Hi",)),), (), Sampling(greedy=True, max_tokens=9))
    reply = ENGINE.greedy(service, Asked("text", question, (1, 5, 6), ""))
    assert reply.prompt_ids == (1, 5, 6) and reply.ids == (7, 2)
    asked = replies.asked["/completion"]
    assert asked["prompt"] == [1, 5, 6] and asked["n_predict"] == 9 and asked["temperature"] == 0.0
    assert asked["stop"] == ["\x00"]


@pytest.mark.parametrize("evaluated", [4, 2, 6])
def test_images_are_sent_resized_and_their_tokens_counted(
    service: Service, monkeypatch: pytest.MonkeyPatch, evaluated: int
) -> None:
    replies = Replies(evaluated)
    monkeypatch.setattr(llama, "whole_reply", replies)
    question = dict(questions(service.architecture))["image of broken patches"]
    reply = ENGINE.greedy(service, Asked("image", question, (1, 10, 13, 5), ""))
    data = replies.asked["/completion"]["prompt"]["multimodal_data"]
    assert Image.open(io.BytesIO(base64.b64decode(data[0]))).size == (144, 80)  # of 133 x 77
    assert len(data) == 1 and f"base64,{data[0]}" in json.dumps(replies.asked["/apply-template"]["messages"])
    expected = {4: None, 2: (1, 10), 6: (1, 10, 13, 5, -1, -1)}
    assert reply.prompt_ids == expected[evaluated]
