"""--to gguf: what llama.cpp's converter is given, with a stand-in that writes down what it finds."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.checkpoint.gguf import plan_gguf, write_gguf
from megatron_apriel.errors import CheckpointError, ConfigError, run_command
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.testing.checkpoints import assert_same_tensors, write_hf_checkpoint
from megatron_apriel.testing.rigged_models import rigged_architecture
from megatron_apriel.testing.word_patterns import LLAMA3, byte_level, sequence, set_words, split
from tools import convert_checkpoint

CONVERTER = """
import json, os, pathlib, sys
model, out = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
from safetensors.torch import load_file, save_file
kept = pathlib.Path(__file__).parent / out.stem
kept.mkdir(exist_ok=True)
for file in model.iterdir():
    if file.is_file():
        (kept / file.name).write_bytes(file.read_bytes())
found = {"options": sys.argv[4:], "model": str(model), "offline": os.environ["HF_HUB_OFFLINE"]}
(kept / "found.json").write_text(json.dumps(found))
out.write_bytes(b"GGUF" + (b"ROW" if "--mmproj" in sys.argv else b""))
"""


@pytest.fixture
def llama_cpp(tmp_path: Path) -> Path:
    """A folder as llama.cpp's source, whose converter keeps what it is given."""
    folder = tmp_path / "llama cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER.replace("ROW", "v.token_embd.img_break"))
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gguf") / "model"
    return write_hf_checkpoint(directory, rigged_architecture(), dtype="bfloat16", processor=True)


def found(llama_cpp: Path, stem: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((llama_cpp / stem / "found.json").read_text())
    return result


def test_text_comes_from_one_form_and_images_from_the_other(ours: Path, llama_cpp: Path, tmp_path: Path) -> None:
    assert write_gguf(plan_gguf(ours, llama_cpp), tmp_path / "out") == ["mmproj.gguf", "text.gguf"]
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["mmproj.gguf", "text.gguf"]
    text, images = found(llama_cpp, "text"), found(llama_cpp, "mmproj")
    assert text["model"] == str(ours) and text["options"] == ["--outtype", "bf16"]
    assert images["options"] == ["--outtype", "bf16", "--mistral-format", "--mmproj"]
    assert text["offline"] == images["offline"] == "1"

    convert(plan_conversion(ours, Kind.MISTRAL), tmp_path / "mistral")
    whole = load_file(tmp_path / "mistral" / "consolidated.safetensors")
    begins = ("vision_encoder.", "vision_language_adapter.", "tok_embeddings.")
    expected = {name: tensor for name, tensor in whole.items() if name.startswith(begins)}
    assert 0 < len(expected) < len(whole)
    assert_same_tensors(load_file(llama_cpp / "mmproj" / "consolidated.safetensors"), expected)
    params = json.loads((llama_cpp / "mmproj" / "params.json").read_text())
    assert params["vision_encoder"]["image_break_token_id"] == 12


@pytest.mark.parametrize("kind", [Kind.MISTRAL, Kind.MEGATRON])
def test_other_forms_are_written_for_the_converter(ours: Path, llama_cpp: Path, tmp_path: Path, kind: Kind) -> None:
    given = tmp_path / "step_00000001"
    convert(plan_conversion(ours, kind), given)
    if kind is Kind.MISTRAL:
        assert (given / "tokenizer.json").exists()
    write_gguf(plan_gguf(given, llama_cpp, dtype=torch.float32), tmp_path / "out")
    assert found(llama_cpp, "text")["options"] == ["--outtype", "f32"]
    assert_same_tensors(
        load_file(llama_cpp / "text" / "model.safetensors"),
        {name: tensor.float() for name, tensor in load_file(ours / "model.safetensors").items()},
    )
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["mmproj.gguf", "text.gguf"]


def test_text_alone(llama_cpp: Path, tmp_path: Path) -> None:
    given = write_hf_checkpoint(tmp_path / "given", rigged_architecture(tower=False), processor=True)
    assert write_gguf(plan_gguf(given, llama_cpp), tmp_path / "out") == ["text.gguf"]


@pytest.mark.parametrize("known", [True, False], ids=["known", "cut"])
@pytest.mark.parametrize("words", ["Tekken", "other"])
def test_a_tokenizer_is_known_by_its_words(
    ours: Path, llama_cpp: Path, tmp_path: Path, known: bool, words: str
) -> None:
    """The converter knows vocabularies by a hash; where it does not, Tekken's words are enough, and others are not."""
    (llama_cpp / "conversion").mkdir()
    way = "return 'by its hash'" if known else "raise NotImplementedError('pre-tokenizer was not recognized')"
    (llama_cpp / "conversion" / "base.py").write_text(
        f"class TextModel:\n    def get_vocab_base_pre(self, tokenizer):\n        {way}\n"
    )
    told = (
        "\nsys.path.insert(0, str(pathlib.Path(__file__).parent))\nfrom conversion.base import TextModel\n"
        "(kept / 'told').write_text(TextModel().get_vocab_base_pre(None))\n"
    )
    converter = llama_cpp / "convert_hf_to_gguf.py"
    converter.write_text(converter.read_text() + told)
    given = tmp_path / "given"
    shutil.copytree(ours, given)
    if words == "other":
        set_words(given, sequence(split(LLAMA3), byte_level(False)))
    plan = plan_gguf(given, llama_cpp)
    if not known and words == "other":
        with pytest.raises(CheckpointError, match="was not recognized"):
            write_gguf(plan, tmp_path / "out")
    else:
        write_gguf(plan, tmp_path / "out")
        assert (llama_cpp / "text" / "told").read_text() == ("by its hash" if known else "tekken")


@pytest.mark.parametrize(
    ("converter", "said"),
    [
        ("import sys; print('unknown pre-tokenizer'); sys.exit(3)", r"exit code 3(?s:.*)unknown pre-tokenizer"),
        ("", "made no text.gguf"),
        (CONVERTER, r"left the row of \[IMG_BREAK\] out of mmproj\.gguf"),
    ],
    ids=["fails", "writes nothing", "loses the row"],
)
def test_a_converter_that_fails_leaves_nothing(
    ours: Path, llama_cpp: Path, tmp_path: Path, converter: str, said: str
) -> None:
    (llama_cpp / "convert_hf_to_gguf.py").write_text(converter)
    with pytest.raises(CheckpointError, match=said):
        write_gguf(plan_gguf(ours, llama_cpp), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_llama_computes_otherwise_is_refused(llama_cpp: Path, tmp_path: Path) -> None:
    usual = rigged_architecture()
    assert usual.tower is not None
    for number, (change, said) in enumerate((
        ({"tower": replace(usual.tower, rope_theta=5e3)}, "the tower's rope_theta is 5000, and llama.cpp .* 10000"),
        ({"decoder": replace(usual.decoder, norm_eps=1e-6)}, "the tower's norm_eps is 1e-05, and llama.cpp .* 1e-06"),
    )):  # fmt: skip
        given = write_hf_checkpoint(tmp_path / str(number), replace(usual, **change), processor=True)
        with pytest.raises(CheckpointError, match=said):
            plan_gguf(given, llama_cpp)


def test_refused_before_the_converter_runs(ours: Path, llama_cpp: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"convert_hf_to_gguf\.py does not exist(?s:.*)--llama-cpp FOLDER"):
        plan_gguf(ours, tmp_path)
    shutil.copytree(ours, tmp_path / "given")
    file = tmp_path / "given" / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": {"AutoTokenizer": ["a--b.C", None]}}))
    with pytest.raises(CheckpointError, match=r"has auto_map(?s:.*)would run it"):
        plan_gguf(tmp_path / "given", llama_cpp)
    (tmp_path / "given" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer, which a GGUF file contains(?s:.*)cp BASE/"):
        plan_gguf(tmp_path / "given", llama_cpp)


def test_command_line(ours: Path, llama_cpp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*options: object) -> int:
        words = [str(word) for word in (ours, tmp_path / "out", *options)]
        return run_command(lambda: convert_checkpoint.main(words))

    assert run("--to", "gguf") == 1 and "--to gguf needs --llama-cpp" in capsys.readouterr().err
    assert run("--to", "hf", "--llama-cpp", llama_cpp) == 1
    assert run("--to", "gguf", "--llama-cpp", llama_cpp, "--verify") == 1
    assert "serve.py MODEL --engine llama --check" in capsys.readouterr().err
    assert run("--to", "gguf", "--llama-cpp", llama_cpp, "--dry-run") == 0 and not (tmp_path / "out").exists()
    assert run("--to", "gguf", "--llama-cpp", llama_cpp) == 0
    said = capsys.readouterr()
    assert "mmproj.gguf, text.gguf, in bf16" in said.out and "both sides are multiples of 16 pixels" in said.err
    assert run("--to", "gguf", "--llama-cpp", llama_cpp) == 1
    assert run("--to", "gguf", "--llama-cpp", llama_cpp, "--overwrite") == 0
