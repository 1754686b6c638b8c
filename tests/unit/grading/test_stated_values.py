"""Right answers as MathVerse and MathVision publish them, and answers that a person calls right or wrong by them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from megatron_apriel.grading.intervals import as_interval, is_interval
from megatron_apriel.grading.math_answers import MathGrader
from megatron_apriel.grading.named_parts import named_parts
from megatron_apriel.grading.stated_value import stated_value
from tests.unit.grading.conftest import CheckLinear


@pytest.fixture(scope="module")
def grader() -> Iterator[MathGrader]:
    with MathGrader() as grader:
        yield grader


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("Area $=113.1 \\mathrm{~cm}^{2}$", "113.1"), ("Area $=113.1 \\mathrm{~cm}^{2}$", "113.1 \\text{ cm}^2"),
        ("Area $=121 \\pi \\mathrm{cm}^{2}$", "121\\pi"),
        ("Area $=\\frac{121 \\pi}{4} \\mathrm{~m}^{2}$", "\\frac{121\\pi}{4}"),
        ("Perimeter $=74 \\mathrm{~mm}$", "74"), (" Perimeter $=74 \\mathrm{~mm}$", "74\\text{ mm}"),
        ("$$r=7.00$$", "7"), ("$$r=7.00$$", "r = 7"), ("$(0,14)$", "(0, 14)"),
        ("$(x, y)=\\left(315^{\\circ}, 1\\right)$", "(315^\\circ, 1)"),
        ("$(x-1)^{2}+(y-3)^{2}=36$", "(x-1)^2+(y-3)^2=36"), ("$-\\frac{20}{21}$", "-\\dfrac{20}{21}"),
        ("$-\\frac{3}{2}x+3$", "y=-\\frac{3}{2}x+3"), ("$10km / h$", "10"), ("$10km / h$", "10 \\text{ km/h}"),
        ("$13 \\%$", "13\\%"), ("$13 \\%$", "13"), ("$144cm^3$", "144"), ("$144cm^3$", "144 \\text{ cm}^3"),
        ("$299 \\mathrm{~cm}^{3}$", "299"), ("$5=s$", "5"), ("$72 x-2 x^3$", "72x - 2x^3"),
        ("$72 x-2 x^3$", "V(x) = 72x - 2x^3"), ("$=(4,0)$", "(4,0)"), ("$C=40.84 \\mathrm{~cm}$", "40.84"),
        ("$[-5,-3) \\cup(-3,5]$", "[-5,-3)\\cup(-3,5]"),
        ("$\\left(\\frac{\\sqrt{2}}{2}, \\frac{\\sqrt{2}}{2}\\right)$",
         "\\left(\\frac{\\sqrt2}{2},\\frac{\\sqrt2}{2}\\right)"),
        ("$g(x)=\\ln x+4$", "g(x) = \\ln(x) + 4"), ("$g(x)=\\ln x+4$", "\\ln x + 4"), ("$x=0$", "0"), ("$x=0$", "x=0"),
        ("$x=8 \\mathrm{~cm}$", "8"), ("$x^{2}+y^{2}=49$", "x^2+y^2=49"), ("$y \\geq-2 x-6$", "y \\ge -2x - 6"),
        ("$y \\leq 5$", "y \\leq 5"), ("$y \\leq 5$", "(-\\infty, 5]"), ("$y<2 x+6$", "y < 2x+6"),
        ("(-2,1]", "-2 < x \\le 1"), ("(-2,1]", "(-2, 1]"), ("(-2,1]", "\\{x \\mid -2 < x \\leq 1\\}"),
        ("(-\\infty, 4]", "x \\leq 4"), ("(-\\infty, 4]", "(-\\infty,4]"),
        ("$y+3=\\frac{3}{4}(x-2)$", "y = \\frac{3}{4}x - \\frac{9}{2}"), ("$y=x-5$", "y=x-5"), ("$y=x-5$", "x-5"),
        ("(x+3)^2+(y+3)^2=9", "(x+3)^2 + (y+3)^2 = 9"), ("-4.9\n-4.9", "-4.9"), ("118\u63b3T", "118^\\circ"),
        ("212\xb0T", "212^\\circ"), ("132 ^\\circT", "132^\\circ T"), ("217 ^\\circ T", "217"),
        ("35\u63b3", "35^\\circ"), ("1:64", "1:64"), ("1:64", "\\frac{1}{64}"), ("2191.7 metres", "2191.7"),
        ("24 units", "24"), ("3799 km", "3799\\text{ km}"), ("120 \\mathrm{cm}^2", "120"),
        ("216.\\mathrm{cm}^2", "216"), ("36\\pi \\mathrm{cm}^3", "36\\pi"), ("45^\\circ ", "45"),
        ("56.55 units $^{3}$", "56.55"), ("8128.50 \\text { units }^2", "8128.5"), ("=\\frac{7}{4}", "\\frac74"),
        ("Area $=113.097$ units $^{2}$", "113.097"), ("Center $=(20,10)$", "(20,10)"),
        ("Slope $=-\\frac{1}{2}$", "-\\frac12"), ("slope =-4", "-4"), ("S.A. $=1209.84$", "1209.84"),
        ("Surface Area $=109603.88 \\mathrm{~mm}^{2}$", "109{,}603.88"), ("Volume $=452.389$ cubic units", "452.389"),
        ("even", "\\text{even}"), ("even", "\\text{Even}"), ("Bugs Bunny", "\\text{Bugs Bunny}"),
        ("domain: (-\\infty, 1] and range: [0, \\infty)",
         "\\text{Domain: } (-\\infty, 1], \\text{ Range: } [0, \\infty)"),
        ("f(x)=|x-3|", "f(x)=|x-3|"), ("f(x)=|x-3|", "|x-3|"), ("f(x)=-(x+1)^2+2", "f(x) = -(x+1)^2 + 2"),
        ("\\frac{x^2}{81}+\\frac{y^2}{9}=1", "\\frac{x^2}{81} + \\frac{y^2}{9} = 1"),
        ("\\left(315^\\circ ,1\\right)", "(315^\\circ, 1)"), ("N 34\xb0 W", "N34^\\circ W"),
        ("S 23.5 ^\\circ W", "S 23.5^\\circ W"), ("Weekly water intake $=15.5$ Litres", "15.5"),
        ("Area of sector $=6 \\pi \\mathrm{cm}^{2}$", "6\\pi"), ("diameter $=10 \\mathrm{~m}$", "10"),
        ("\\frac{1225\\pi }{2} \\text { units }^2", "\\frac{1225\\pi}{2}"),
        ("\\frac{847}{3} \\mathrm{mm}^3", "\\frac{847}{3}"), ("y=\\sqrt{49-x^2}", "y = \\sqrt{49 - x^2}"),
        ("0.75 x^2", "\\frac{3}{4}x^2"), ("4+4\\sqrt{3}", "4(1+\\sqrt{3})"), ("\x0crac{36}{13}", "\\frac{36}{13}"),
        ("$\\boxed{\\frac{121}{180}}$", "\\frac{121}{180}"), ("69{degrees}", "69"),
        ("8\\sqrt{3}{squareinches}", "8\\sqrt{3}"), ("\\frac{3}{4}\\pi{inches}", "\\frac{3\\pi}{4}"), ("45^2", "2025"),
        ("\\frac{360}7", "\\frac{360}{7}"), ("1:2", "1:2"), ("525/2", "262.5"),
        ("$\\frac{90}{23}^{\\circ}$", "\\frac{90}{23}"), ("4.0", "4"), ("11 ", "11"), ("C", "C"), ("C", "\\text{C}"),
        ("(3,-4)", "(3,-4)"), ("$\\pi-2$", "\\pi - 2"), ("$\\frac{7^3}{2^{12} 13^2}$", "\\frac{343}{692224}"),
        ("1234", "1,234"), ("1234", "1\\,234"), ("0.5", "50\\%"), ("50", "50\\%"), ("3/4", "0.75"),
        ("300000", "3 \\times 10^5"), ("300000", "3e5"), ("2.5", "2\\frac{1}{2}"), ("2.5", "2 1/2"),
        ("\\{1,2,3\\}", "\\{3,2,1\\}"), ("1,2,3", "1, 2, 3"), ("1,2,3", "3,2,1"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix}1 & 2\\\\ 3 & 4\\end{bmatrix}"),
        ("60^\\circ", "60"), ("60", "60^\\circ"), ("60", "60\\text{ degrees}"),
        ("12", "12 \\text{ meters per second}"), ("12", "\\$12"), ("12", "x=12"), ("12", "12."), ("x=1,x=2", "1, 2"),
        ("x=1 \\text{ or } x=2", "x=1 \\text{ or } x=2"), ("\\pm 2", "\\pm 2"), ("\\pm 2", "2,-2"), ("2^{10}", "1024"),
        ("\\sqrt{12}", "2\\sqrt{3}"), ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"), ("-1", "\u22121"),
        ("100", "100.00"), ("10^{10}", "10000000000"), ("\\infty", "\\infty"), ("a+b", "b+a"), ("2n+1", "1 + 2n"),
        ("\\text{Friday}", "\\text{Friday}"), ("Friday", "friday"), ("True", "\\text{True}"),
        ("10 \\leq x \\leq 20", "[10,20]"), ("[10,20]", "10 \\leq x \\leq 20"), ("(1,\\infty)", "x>1"),
        ("x>1", "(1,\\infty)"), ("(-\\infty,1)\\cup(2,\\infty)", "x<1 \\text{ or } x>2"),
        ("12 \\text{ cm}", "12 \\text{ centimeters}"), ("12 cm^2", "12 \\text{ square centimeters}"),
        ("12 units", "12 \\text{ cm}"), ("10 \\text{ km/h}", "10 \\text{ kilometers per hour}"), ("\\$1,200", "1200"),
        ("1200", "\xa31,200"), ("[1,2)", "1 \\le x < 2"), ("[1,2)", "2 > x \\ge 1"),
        ("(-\\infty,0)\\cup(0,\\infty)", "x \\ne 0"),
        ("(-\\infty,0)\\cup(0,\\infty)", "\\mathbb{R} \\setminus \\{0\\}"), ("[0,\\infty)", "x \\geq 0"),
        ("(0,5)", "x \\in (0,5)"), ("x>3", "3<x"), ("x>3", "x \\in (3, \\infty)"), ("2", "x = 2"), ("x=2", "2"),
        ("3,4", "3 \\text{ or } 4"), ("3,4", "3 \\text{ and } 4"), ("x=3,y=4", "x=3, y=4"), ("(3,4)", "x=3, y=4"),
        ("x=3,y=4", "(3,4)"), ("50\\%", "0.5"), ("0.5", "1/2"), ("\\frac{1}{2}", "0.50"), ("1.5", "\\frac{3}{2}"),
        ("1\\frac{1}{2}", "1.5"), ("100", "1e2"), ("100", "10^2"), ("0.001", "10^{-3}"),
        ("6.02\\times10^{23}", "6.02 \\cdot 10^{23}"), ("+5", "5"), ("\\frac{a}{b}", "a/b"),
        ("\\sin^2 x + \\cos^2 x", "1"), ("x^2-1", "(x-1)(x+1)"), ("\\log_2 8", "3"), ("\\binom{5}{2}", "10"),
        ("5!", "120"), ("\\lfloor 2.5 \\rfloor", "2"), ("|{-3}|", "3"), ("\\sqrt[3]{8}", "2"),
        ("\\angle ABC", "\\angle ABC"), ("\\text{A and C}", "\\text{A and C}"), ("No", "\\text{no}"),
        ("\\text{(C)}", "C"), ("(C)", "C"), ("C", "(C)"), ("\\triangle ABC", "\\triangle ABC"), ("\\{1,2\\}", "1,2"),
        ("\\emptyset", "\\varnothing"), ("\\emptyset", "\\{\\}"), ("1 < x < 3", "(1,3)"), ("2:3", "\\frac{2}{3}"),
        ("2:3", "2 : 3"), ("45^\\circ", "45"), ("12:30", "12:30"), ("3+4i", "4i+3"), ("\\langle 1,2\\rangle", "(1,2)"),
        ("y=2x+1", "2x+1"), ("y=2x+1", "2x-y+1=0"), ("7", "7 \\text{ apples}"), ("42", "\\text{The answer is } 42"),
        ("42", "\\approx 42"), ("1,000,000", "1000000"), ("1 000 000", "1000000"), ("0", "-0"), ("\\frac{0}{5}", "0"),
        ("61", "61\\ \\text{units}"), ("61", "61\\ \\text{cm}"), ("61", "61 \\text{ (mod } 100)"),
        ("61", "61 (mod 100)"),
        ("ABC", "\\text{ABC}"), ("1:2:3", "2 : 4 : 6"), ("12.5", "12.5\\%"), ("12.5\\%", "12.5"), ("61", "61 marbles"),
        ("61", "61 red marbles"), ("1,250", "1250 old francs"), ("61", "p + q = 61"),
        ("2x - 3y + 4 = 0", "4x - 6y + 8 = 0"), ("2x - 3y + 4 = 0", "3y - 2x - 4 = 0"),
    ],
)  # fmt: skip
def test_the_same_value(grader: MathGrader, gold: str, answer: str) -> None:
    assert grader.grade(f"So \\boxed{{{answer}}}", gold).is_right


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("Area $=113.1 \\mathrm{~cm}^{2}$", "113.2"), ("$(0,14)$", "(14,0)"),
        ("$(x-1)^{2}+(y-3)^{2}=36$", "(x-1)^2+(y-3)^2=6"), ("$144cm^3$", "145"), ("$[-5,-3) \\cup(-3,5]$", "[-5,5]"),
        ("$g(x)=\\ln x+4$", "\\ln(x+4)"), ("$y \\geq-2 x-6$", "y > -2x - 6"), ("(-2,1]", "-2 \\le x \\le 1"),
        ("(-2,1]", "(-2,1)"), ("(-\\infty, 4]", "x < 4"), ("even", "\\text{odd}"),
        ("domain: (-\\infty, 1] and range: [0, \\infty)",
         "\\text{Domain: } (-\\infty, 1), \\text{ Range: } [0, \\infty)"),
        ("S 23.5 ^\\circ W", "N 23.5^\\circ W"), ("\\frac{1}{3}", "0.333"), ("(1,2,3)", "(3,2,1)"),
        ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}"),
        ("\\sqrt{12}", "3.464"), ("7", "7 \\text{ or } 8"), ("25", "25!"), ("12 cm", "12 m"),
        ("12 cm^2", "12 \\text{ cm}"), ("2x", "2"), ("(1,2)", "(2,1)"), ("[1,2)", "1 < x \\le 2"),
        ("[0,\\infty)", "x > 0"), ("x>3", "[3,\\infty)"), ("x=2", "y=2"), ("3", "3 \\text{ or } 4"), ("3", "x=3, y=4"),
        ("50", "0.5"), ("\\frac{22}{7}", "\\pi"), ("3.14", "\\pi"), ("\\pi", "3.14159"), ("10", "10!"), ("-5", "5"),
        ("1/2", "2/1"), ("\\frac{a}{b}", "b/a"), ("yes", "no"), ("C", "D"), ("\\text{Monday}", "Tuesday"),
        ("\\{1,2\\}", "\\{1,2,3\\}"), ("1 \\leq x \\leq 3", "1 < x < 3"), ("2:3", "3:2"),
        ("45^\\circ", "\\frac{\\pi}{4}"), ("3+4i", "3-4i"), ("y=2x+1", "y=2x-1"), ("7", "seven"), ("42", "42.0001"),
        ("41.9", "42"), ("1.000.000", "1000000"),
        ("2x - 3y + 4 = 0", "2x - 3y + 5 = 0"), ("2x - 3y + 4 = 0", "0"), ("x^2 + y^2 = 4", "4"),
        ("4", "x = 3 \\text{ or } x = 4"), ("4", "x = 3, y = 4"), ("5", "5 million"),
        ("5", "5 thirds"), ("2", "2 dozen eggs"), ("ABC", "CAB"), ("1:2:3", "1:3:2"), ("1:2:3", "2:4:5"),
        ("12.5", "1.25\\%"),
    ],
)  # fmt: skip
def test_another_value(grader: MathGrader, gold: str, answer: str) -> None:
    assert not grader.grade(f"So \\boxed{{{answer}}}", gold).is_right


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("Area $=113.1 \\mathrm{~cm}^{2}$", "113.1", "cm2"), ("12 square inches", "12", "in2"),
        ("10km / h", "10", "km/h"), ("10 kilometers per hour", "10", "km/h"), ("24 units", "24", ""),
        ("212\xb0T", "212^{\\circ}", ""), ("2191.7 metres", "2191.7", "m"), ("5=s", "5", ""), ("12", "12", ""),
        ("2x", "2x", ""), ("x=5", "x=5", ""), ("even", "even", ""), ("1,234.5", "1234.5", ""),
        ("\\text{Friday}", "\\text{Friday}", ""), ("3 \\text{ or } 4", "3 \\text{ or } 4", ""),
    ],
)  # fmt: skip
def test_value_and_unit(text: str, value: str, unit: str) -> None:
    assert stated_value(text) == (value, unit)


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("-2 < x \\le 1", "(-2, 1]"), ("1 \\geq x > -2", "(-2, 1]"), ("x \\leq 4", "(-\\infty, 4]"),
        ("4 < x", "(4, \\infty)"), ("\\{x \\mid x < 2\\}", "(-\\infty, 2)"), ("x \\in [1, 2)", "[1, 2)"),
        ("x<1 \\text{ or } x>2", "(-\\infty, 1) \\cup (2, \\infty)"), ("x \\neq 0", "(-\\infty, 0) \\cup (0, \\infty)"),
        ("y \\geq -2x - 6", None), ("x = 2", None), ("2 < 3", None), ("x < y", None), ("(1, 2)", None), ("", None),
        ("x \\in S", None), ("1 < x < 2 < 3", None),
    ],
)  # fmt: skip
def test_inequalities_as_intervals(text: str, interval: str | None) -> None:
    found = as_interval(text)
    assert (found and "".join(found.split())) == (interval and "".join(interval.split()))


def test_intervals() -> None:
    assert all(map(is_interval, ("(1,2)", "[\\frac{1}{2}, \\sqrt{(3)}]", "(-\\infty, 1) \\cup (2, 3]")))
    assert not any(map(is_interval, ("(1)", "1,2", "(1,2,3)", "(1,2)(3,4)", "f(1,2)", "", "(1,2", "{1,2}")))


def test_named_parts() -> None:
    assert named_parts("domain: (2,8] and range: [6,8)") == {"domain": "(2,8]", "range": "[6,8)"}
    rising = named_parts("Increasing on (2, 3), and decreasing on (3, 4).")
    assert rising == {"increasing": "(2, 3)", "decreasing": "(3, 4)"}
    assert named_parts("Center $=(20,10)$") is named_parts("(2, 8]") is None


@pytest.mark.parametrize(
    "piece", ["x<", "(", "1,", "cm ", "domain: ", "{", "= ", "\\text{", "1 ", "or ", "a", " ", "\n"]
)
def test_time_is_linear(piece: str, check_linear: CheckLinear) -> None:
    check_linear(lambda text: (stated_value(text), as_interval(text), named_parts(text)), piece)


@pytest.mark.parametrize(
    ("gold", "answer", "is_right"),
    [
        ("4.4 m", "440 \\text{ cm}", True), ("4.4 m", "44 \\text{ cm}", False), ("50 cm", "0.5 m", True),
        ("Area $=113.1 \\mathrm{~cm}^{2}$", "0.01131 \\text{ m}^2", True),
        ("Area $=113.1 \\mathrm{~cm}^{2}$", "1.131 \\text{ m}^2", False),
        ("Area $=9 \\pi \\mathrm{cm}^{2}$", "900\\pi \\text{ mm}^2", True), ("2 l", "2000 \\text{ cm}^3", True),
        ("36 km/h", "10 m/s", True), ("36 km/h", "36 m/s", False), ("90 min", "1.5 hours", True),
        ("3 kg", "3000 g", True), ("3 kg", "3 m", False), ("1 m", "3.28 ft", False),
        ("12 cm", "12 \\, (\\text{cm})", True), ("12 cm", "12 \\, (\\text{m})", False),
        ("(2,3)", "P(2, 3)", True), ("(2,3)", "\\text{Point } (2, 3)", True),
        ("(2,3)", "\\text{the vertex } (3, 2)", False), ("70", "70 = N", True),
    ],
)  # fmt: skip
def test_other_units_and_words_before_a_pair(grader: MathGrader, gold: str, answer: str, is_right: bool) -> None:
    assert grader.grade(f"So \\boxed{{{answer}}}.", gold).is_right is is_right
