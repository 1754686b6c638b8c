"""One spelling for what people and models write in several ways around a mathematical result, before it is compared.

Signs of Unicode become LaTeX's or plain ones; colours, lines and spaces that change nothing go; ``3e5`` and ``1 1/2``
become what they mean. What is left to compare is the value.
"""

from __future__ import annotations

import re

_SIGNS = str.maketrans({
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)}, "\uff0e": ".", "\uff0c": ",", "\uff0d": "-",
    "\u2212": "-", "\uff05": "%", "~": " ", "\xa0": " ", "\u2009": " ", "\u202f": " ", "\u2060": "", "\u200b": "",
    "\xb0": "^{\\circ}", "\xd7": "\\times ", "\xb7": "\\cdot ", "\u22c5": "\\cdot ", "\u03c0": "\\pi ",
    "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u222a": "\\cup ", "\xb1": "\\pm ",
})  # fmt: skip
_ROOT = re.compile(r"\u221a(?:\((\w+)\)|(\d+|[a-zA-Z]))")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_SAME = (("\\varnothing", "\\emptyset"), ("\\langle", "("), ("\\rangle", ")"), ("\\{\\}", "\\emptyset"))
_LINE = re.compile(r"\\underline\s*(?=\{)|\\displaystyle(?![a-zA-Z])")
_ALL_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_EXPONENT = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})", re.ASCII)
_MIXED = re.compile(r"([+-]?\d+)\s+(\d+)/(\d+)", re.ASCII)
UNWRAPPED = re.compile(r"\\(?:text(?:bf|rm|it)?|math(?:rm|bf|sf|it)|mbox)\s*\{([^{}]*)\}")
"""Words in a formula, without what puts them there."""
_END_TOKENS = re.compile(r"</?s>|</answer>|<\|[a-z_]{1,20}\|>|<(?:end_of_turn|eos)>|\[(?:BEGIN|END) FINAL RESPONSE\]")
_BEHIND = re.compile(r"(?:\\[,;:!]|[\s,;.\u3002])+\Z")


def without_end_tokens(text: str) -> str:
    """A response without the tokens of a chat's template, which some servers leave in the text."""
    return _END_TOKENS.sub("", text)


def plain_spelling(text: str) -> str:
    """An answer with nothing around its value that does not change it."""
    text = _BEHIND.sub("", _LINE.sub("", _COLOUR.sub("", text.translate(_SIGNS)))).strip()
    for written, meant in _SAME:
        text = text.replace(written, meant)
    text = _ROOT.sub(lambda root: f"\\sqrt{{{root[1] or root[2]}}}", text)
    if (inside := _ALL_TEXT.fullmatch(text)) is not None and any(letter.isdigit() for letter in inside[1]):
        text = inside[1].strip()
    if (number := _EXPONENT.fullmatch(text)) is not None:
        return f"{number[1]} \\times 10^{{{int(number[2])}}}"
    if (number := _MIXED.fullmatch(text)) is not None:
        return f"{number[1]}\\frac{{{number[2]}}}{{{number[3]}}}"
    return text
