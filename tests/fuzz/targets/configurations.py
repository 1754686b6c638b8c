"""Configurations: a stage's YAML file with overrides, a file of hardware numbers, and values as people write them."""

from __future__ import annotations

import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import yaml

from megatron_apriel.config.load import load_stage, to_yaml
from megatron_apriel.planning.hardware import KINDS, hardware, hardware_yaml
from megatron_apriel.quantities import parse_bytes, parse_count, parse_fraction, parse_path

from ..byte_changes import change_bytes
from ..case import Target, Wrong, repeated
from ..json_changes import TEXTS, change_value, strange

EXAMPLES = Path(__file__).parents[3] / "examples"
SECRET_NAME, SECRET = "FUZZ_SECRET", "hidden-7f3a91"

WORDS = (
    "&a ", "*a", "<<: *a", "!!python/object:os.system x", "!!python/name:os.system", "!!binary AAA=", "!!timestamp x",
    "!!set {a}",
    "!!omap [a: 1]", "!!int a", "!!float x", "!!bool 3", "!!null x", "!!str", "!!map", "!!seq", "!x y",
    "!<tag:yaml.org,2002:int> a", "? a",
    "? [a]: b", "- ", "---", "...", "%YAML 1.1", "%TAG ! tag:x,2000:", "|", ">-", "|9", "{", "}", "[", "]", "{a: b",
    "[1, 2",
    "'", '"', '"\\x00"', '"\\ud800"', '"\\u202e"', "\t", "0x10", "0o17", "0b1", "010", "1_000", "_1", "1__0", "1:30",
    ".inf", "-.INF", ".nan",
    "1e400", "1e-400", "9" * 5000, "1e", "+", "-", ".", "~", "off", "yes", "2020-01-01", "2020-13-45", "=", "#", ": ",
    ":", ",", "\x85",
    "\u2028", "\ufeff", "\x7f", "null", "${FUZZ_SECRET}", "${FUZZ_SECRET:-x}", "${FUZZ_UNSET}",
    "${FUZZ_UNSET:-${FUZZ_SECRET}}",
    "x/${FUZZ_SECRET}/y", "${FUZZ_SECRET", "%", "10%", "-1%", "1e3%", "4Ki", "4Q", "last 2", "every 0",
)  # fmt: skip
"""What YAML reads in some way of its own, and values that are nearly right."""


class StageFiles(Target):
    """Refused with a ConfigError, or equal to itself after it is written and read again; secrets stay unsaid."""

    name = "stages"
    about = "a stage's YAML file and key=value overrides"
    guided = "stage.yaml"

    def make(self, directory: Path) -> None:
        for file in sorted(EXAMPLES.rglob("*.yaml")):
            if file.name != "upscale.yaml" and "stage:" in file.read_text(encoding="utf-8"):
                (directory / f"{file.parent.name}-{file.name}").write_bytes(file.read_bytes())

    def open(self, directory: Path) -> None:
        os.environ[SECRET_NAME] = SECRET
        self.texts = [file.read_text(encoding="utf-8") for file in sorted(directory.iterdir())]
        self.documents = [yaml.safe_load(text) for text in self.texts]
        self.places = sorted({place for document in self.documents for place in _places(document)})

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        number = random.randrange(len(self.texts))
        text, overrides = self.texts[number], []
        if changes and random.random() < 0.5:
            document, done = self.documents[number], []
            for _ in range(changes):
                document, what = change_value(random, document, self.places)
                done.append(what)
            text = _yaml(document, flow=random.choice((None, True, False)))
            said = "; ".join(done)
        else:
            text, said = _changed_text(random, text, changes, self.texts)
        while changes and random.random() < 0.3:
            overrides.append(self._override(random))
        (directory / "stage.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
        (directory / "overrides").write_text("\0".join(overrides), encoding="utf-8", errors="surrogatepass")
        return f"{said}; overrides {overrides!r:.300}"

    def _override(self, random: Random) -> str:
        place = random.choice(self.places)
        if random.random() < 0.2:
            place = random.choice(
                (
                    place + ".x",
                    place + ".0",
                    place.partition(".")[0],
                    "mixture.99.weight",
                    place + "[0]",
                    "",
                    ".",
                    "a..b",
                )
            )
        value = random.choice((*WORDS, *TEXTS)) if random.random() < 0.7 else str(strange(random, 1))[:6000]
        return f"{place}{random.choice(('=', '=', '=', '', ' = ', '=='))}{value}"

    def check(self, directory: Path) -> None:
        text = (directory / "overrides").read_text(encoding="utf-8", errors="surrogatepass")
        overrides = text.split("\0") if text else []
        try:
            config = load_stage(directory / "stage.yaml", overrides)
        except Exception as error:
            if SECRET in str(error):
                raise Wrong(f"the error tells what an environment variable holds: {error}") from error
            raise
        written = to_yaml(config)
        if SECRET in written:
            raise Wrong("the resolved configuration tells what an environment variable holds")
        (directory / "again.yaml").write_text(written, encoding="utf-8")
        again = load_stage(directory / "again.yaml")
        if again != config or to_yaml(again) != written:
            raise Wrong("the resolved configuration reads back as another")


class HardwareFiles(Target):
    """Numbers of a GPU: refused, or those that YAML says, each above zero."""

    name = "hardware"
    about = "a file of hardware numbers and --set words"
    guided = "hardware.yaml"

    def make(self, directory: Path) -> None:
        (directory / "h200.yaml").write_text(hardware_yaml(KINDS["h200"]), encoding="utf-8")

    def open(self, directory: Path) -> None:
        self.text = (directory / "h200.yaml").read_text(encoding="utf-8")

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        text, said = self.text, ""
        if changes and random.random() < 0.5:
            document = yaml.safe_load(text)
            for _ in range(changes):
                document, what = change_value(random, document)
                said += what + "; "
            text = _yaml(document, None)
        else:
            text, said = _changed_text(random, text, changes, [text])
        settings = []
        while changes and random.random() < 0.3:
            name = random.choice((*KINDS["h200"].model_dump(), *TEXTS))
            settings.append(f"{name}={random.choice((*WORDS, *TEXTS))}")
        (directory / "hardware.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
        (directory / "settings").write_text("\0".join(settings), encoding="utf-8", errors="surrogatepass")
        return f"{said}; settings {settings!r:.300}"

    def check(self, directory: Path) -> None:
        text = (directory / "settings").read_text(encoding="utf-8", errors="surrogatepass")
        settings = text.split("\0") if text else []
        gpu = hardware("h200", directory / "hardware.yaml", settings)
        for name, value in gpu.model_dump().items():
            if isinstance(value, float) and not 0 <= value < float("inf"):
                raise Wrong(f"{name} is {value}")
        if not settings:
            try:
                stated = yaml.safe_load((directory / "hardware.yaml").read_text(encoding="utf-8"))
            except (ValueError, yaml.YAMLError):  # YAML 1.1 has dates and more, and this is none
                return
            for name, value in stated.items():
                if isinstance(value, float) and getattr(gpu, str(name)) != value:
                    raise Wrong(f"{name} is {getattr(gpu, str(name))}, the file says {value}")


_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class Quantities(Target):
    """Counts, sizes, fractions and paths: a ValueError, or the number that exact arithmetic gives."""

    name = "quantities"
    about = "numbers with units, fractions and paths"
    guided = "value"
    refusals = (ValueError,)

    def make(self, directory: Path) -> None:
        """Nothing: the values are made as they are needed."""

    def open(self, directory: Path) -> None:
        os.environ[SECRET_NAME] = SECRET

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        text = "4Mi"
        if changes:
            number = random.choice(
                (
                    "1",
                    "0",
                    "4.35",
                    "1_000",
                    "00",
                    "1e3",
                    "1e999",
                    "9" * 40,
                    "1.",
                    ".5",
                    "-1",
                    "+1",
                    "1e-3",
                    "٣",
                    "1,5",
                    "0x10",
                    "inf",
                )
            )
            unit = random.choice((*_UNITS, *_BYTES, "%", "ki", " GB", "Q", "\u0435"))
            text = random.choice((f"{number}{unit}", f"{number}{unit}", random.choice(WORDS), random.choice(TEXTS)))
        for _ in range(changes - 1):
            changed, _ = change_bytes(random, text.encode("utf-8", "surrogatepass"), [b"10%", b"5GB"])
            text = changed[:4096].decode("utf-8", "replace")
        (directory / "value").write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        return repr(text)[:200]

    def check(self, directory: Path) -> None:
        text = (directory / "value").read_bytes().decode("utf-8", "surrogatepass")
        accepted = 0
        for parse, units in ((parse_count, _UNITS), (parse_bytes, _BYTES)):
            accepted += self._parses(parse, text, lambda value, units=units: self._exact(value, units))  # type: ignore[misc]
        accepted += self._parses(parse_fraction, text, self._share)
        accepted += self._parses(parse_path, text, None)
        if not accepted:
            raise ValueError("refused by all")

    @staticmethod
    def _parses(parse: Any, text: str, expected: Any) -> bool:
        try:
            found = parse(text)
        except ValueError:
            return False
        if expected is not None and found != (wanted := expected(text)):
            raise Wrong(f"{parse.__name__}({text!r:.80}) is {found!r:.80} and should be {wanted!r:.80}")
        return True

    @staticmethod
    def _exact(text: str, units: dict[str, int]) -> Fraction:
        text = text.strip()
        unit = text.lstrip("0123456789._")
        if unit[:1] in "eE" and unit[1:].lstrip("+")[:1].isdigit():
            unit = unit[1:].lstrip("+0123456789")
        number = text[: len(text) - len(unit)].strip()
        return Fraction(number.replace("_", "")) * units[unit.strip().upper()]

    @staticmethod
    def _share(text: str) -> float:
        text = text.strip()
        return float(Decimal(text[:-1]) / 100) if text.endswith("%") else float(text)


def _changed_text(random: Random, text: str, changes: int, others: list[str]) -> tuple[str, str]:
    """Text with values, keys and bytes replaced."""
    data = text

    def change() -> str:
        nonlocal data
        if random.random() < 0.6:
            word = random.choice(WORDS)
            lines = data.split("\n")
            place = random.randrange(len(lines))
            head, colon, _ = lines[place].partition(":")
            kind = random.randrange(4)
            if kind == 0:
                lines[place] = f"{head}{colon} {word}"
            elif kind == 1:
                lines[place] = f"{head}: {word}{lines[place][len(head) + 1 :]}"
            elif kind == 2:
                lines.insert(place, " " * random.randrange(4) + word)
            else:
                start = random.randint(0, len(lines[place]))
                lines[place] = lines[place][:start] + word + lines[place][start:]
            data = "\n".join(lines)
            return f"{word!r:.40} in line {place + 1}"
        raw = data.encode("utf-8", "surrogateescape")
        changed, what = change_bytes(random, raw, [other.encode() for other in others])
        data = changed[: 2**20].decode("utf-8", "surrogateescape")
        return what

    said = repeated(changes, change)
    return data, said


def _yaml(document: Any, flow: bool | None) -> str:
    """As YAML; what YAML has no word for (repeated keys, numbers of thousands of digits) goes in as text."""
    try:
        return yaml.safe_dump(_plain(document), sort_keys=False, default_flow_style=flow, allow_unicode=True)
    except (ValueError, yaml.YAMLError, UnicodeEncodeError):
        return repr(document)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str.__str__(key) if isinstance(key, str) else key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value


def _places(value: Any, path: str = "") -> list[str]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = []
    for key, inner in items:
        place = f"{path}.{key}" if path else str(key)
        found += [place, *_places(inner, place)]
    return found
