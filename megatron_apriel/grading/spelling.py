"""One spelling for what people and models write in several ways around a mathematical result, before it is compared.

Signs of Unicode become LaTeX's or plain ones; colours, lines and spaces that change nothing go; ``3e5`` and ``1 1/2``
become what they mean. What is left to compare is the value.
"""

from __future__ import annotations

import re

_SIGNS = str.maketrans({
    **{chr(0xFF10 + digit): str(digit) for digit in range(10)}, "\uff0e": ".", "\uff0c": ",", "\uff0d": "-",
    "\u2212": "-", "\uff05": "%", "~": " ", "\xa0": " ", "\u2009": " ", "\u202f": " ", "\u2060": "", "\u200b": "",
    "\xb0": "^{\\circ}", "\xba": "^{\\circ}", "\u02da": "^{\\circ}", "\xf7": "/",
    "\xd7": "\\times ", "\xb7": "\\cdot ", "\u22c5": "\\cdot ", "\u03c0": "\\pi ",
    "\u221e": "\\infty ", "\u2264": "\\le ", "\u2265": "\\ge ", "\u222a": "\\cup ", "\xb1": "\\pm ",
})  # fmt: skip
_RAISED = "\u2070\xb9\xb2\xb3\u2074\u2075\u2076\u2077\u2078\u2079\u207b\u207a"
_EXPONENTS = re.compile(f"[{_RAISED}]+")
_INDICES = re.compile("[\u2080-\u2089]+")
_FRACTIONS = {
    "\xbd": (1, 2), "\xbc": (1, 4), "\xbe": (3, 4), "\u2153": (1, 3), "\u2154": (2, 3), "\u2155": (1, 5),
    "\u2156": (2, 5), "\u2157": (3, 5), "\u2158": (4, 5), "\u2159": (1, 6), "\u215a": (5, 6), "\u215b": (1, 8),
    "\u215c": (3, 8), "\u215d": (5, 8), "\u215e": (7, 8),
}  # fmt: skip
_FRACTION = re.compile(f"[{''.join(_FRACTIONS)}]")
_UNBRACED = re.compile(
    r"\\[dtcs]?frac\s*(\d|[a-z]|\\[a-z]{2,7})\s*(\d|[a-z]|\\[a-z]{2,7})(?![a-z{])|\\(?:nice|s|c)frac(?=\s*\{)"
)
_PLAIN = (
    (re.compile(r"\\degrees?(?![a-zA-Z])"), r"^{\\circ}"),
    (re.compile(r"\\colon(?![a-zA-Z])"), ":"),
    (re.compile(r"\\([gl])eq(?:q|slant)?(?![a-zA-Z])"), r"\\\1e "),
    (re.compile(r"\\(?:bm|boldsymbol)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\left\s*[(\[]\s*\\begin\{array\}\s*\{[^{}]*\}"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\{array\}\s*\\right\s*[)\]]"), r"\\end{pmatrix}"),
    (re.compile(r"(?<![\\A-Za-z])sqrt\s?\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"\A\s*[\u2013\u2014](?=[\d.\\])"), "-"),
    (re.compile(r"(?<=[\w)}])\s?(?<!\*)\*(?!\*)\s?(?=[\w(\\])"), r" \\cdot "),
    (re.compile(r"\^(-\d+)"), r"^{\1}"),
    (re.compile(r"\\sqrt\s*(\d|[a-z](?![a-z]))"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=\d)(?:\{,\}|\\,|\\!,?|,\\!)(?=\d{3}(?!\d))"), ","),
    (re.compile(r"(?<![\\A-Za-z])(ln|log|sin|cos|tan|pi)(?![A-Za-z])"), r"\\\1 "),
)
"""What is written without LaTeX, or in a form that math-verify does not read."""
_ROOT = re.compile(r"\u221a\s?(?:\((\w+)\)|\{([^{}]*)\}|(\d+|[a-zA-Z]))")
_COLOUR = re.compile(r"\\(?:text)?color\s*\{[^{}]*\}")
_SAME = (("\\varnothing", "\\emptyset"), ("\\langle", "("), ("\\rangle", ")"), ("\\{\\}", "\\emptyset"))
_LINE = re.compile(r"\\underline\s*(?=\{)|\\displaystyle(?![a-zA-Z])")
TEXT_COMMANDS = "text(?:bf|rm|it|sf)?|math(?:rm|bf|sf|it|tt)|mbox"
"""Of LaTeX, which set words or upright letters in a formula."""
_ALL_TEXT = re.compile(rf"\\(?:{TEXT_COMMANDS})\s*\{{([^{{}}]*)\}}")
_EXPONENT = re.compile(r"([+-]?\d+(?:\.\d+)?)[eE]([+-]?\d{1,3})", re.ASCII)
_MIXED = re.compile(r"([+-]?\d+)\s+(\d+)/(\d+)", re.ASCII)
_TEXT_COMMAND = re.compile(rf"\\(?:{TEXT_COMMANDS}|boxed)\s*\{{([^{{}}]*)\}}")
_END_TOKENS = re.compile(
    r"</?s>|</answer>|<\|[a-z_]{1,20}\|>(?:\s?assistant\b)?|<(?:end_of_turn|eos)>|\[(?:BEGIN|END) FINAL RESPONSE\]"
)
_BEHIND = " \t\n\r\f\v,;.\u3002"
_WIDTHS = ("\\,", "\\;", "\\:", "\\!")
"""Marks and blanks of LaTeX at the end."""


def without_end_tokens(text: str) -> str:
    """A response without the tokens of a chat's template, which some servers leave in the text; a line ends there."""
    return _END_TOKENS.sub("\n", text)


def without_text_commands(text: str) -> str:
    """Words in a formula without the command that puts them there, or in a box: ``cm`` for ``\\text{cm}``."""
    return _TEXT_COMMAND.sub(r"\1", text)


def _without_end(text: str) -> str:
    """Without marks and blanks at the end."""
    end = len(text)
    while end:
        if text.endswith(_WIDTHS, 0, end):
            end -= 2
        elif text[end - 1] in _BEHIND:
            end -= 1
        else:
            break
    return text[:end]


def _exponent(raised: re.Match[str]) -> str:
    return "^" + _grouped("".join("0123456789-+"[_RAISED.index(sign)] for sign in raised[0]))


def _index(lowered: re.Match[str]) -> str:
    return "_" + _grouped("".join(str(ord(sign) - ord("\u2080")) for sign in lowered[0]))


def _grouped(digits: str) -> str:
    return digits if len(digits) == 1 else f"{{{digits}}}"


def _fraction(sign: re.Match[str]) -> str:
    above, below = _FRACTIONS[sign[0]]
    return f"\\frac{{{above}}}{{{below}}}"


def plain_spelling(text: str) -> str:
    """An answer with nothing around its value that does not change it."""
    text = _without_end(_LINE.sub("", _COLOUR.sub("", text.translate(_SIGNS)))).strip()
    for written, meant in _SAME:
        text = text.replace(written, meant)
    text = _INDICES.sub(_index, _EXPONENTS.sub(_exponent, _FRACTION.sub(_fraction, text)))
    text = _UNBRACED.sub(lambda found: f"\\frac{{{found[1]}}}{{{found[2]}}}" if found[1] else "\\frac", text)
    for pattern, written in _PLAIN:
        text = pattern.sub(written, text)
    text = _ROOT.sub(lambda root: f"\\sqrt{{{root[1] or root[2] or root[3]}}}", text)
    if (inside := _ALL_TEXT.fullmatch(text)) is not None and any(letter.isdigit() for letter in inside[1]):
        text = inside[1].strip()
    if (number := _EXPONENT.fullmatch(text)) is not None:
        return f"{number[1]} \\times 10^{{{int(number[2])}}}"
    if (number := _MIXED.fullmatch(text)) is not None:
        return f"{number[1]}\\frac{{{number[2]}}}{{{number[3]}}}"
    return text
