#!/usr/bin/env bash
# Library:   math-verify 0.9.0, with latex2sympy2-extended 1.11.0
# Behaviour: Units are dropped before values are compared, so 5 m is 5 km. An inequality is right where the right answer
#            is the other form of the same interval only if the right answer is the inequality.
# Output:    5 \mathrm{m} for 5 \mathrm{km}: True
#            113.1 \mathrm{~cm}^{2} for 113.1 \mathrm{~m}^{2}: True
#            (3,\infty) for x>3: True
#            x>3 for (3,\infty): False
# Matters:   Right answers of published benchmarks have units and intervals in both forms. Verdicts here take units and
#            intervals apart first (megatron_apriel/grading/stated_value.py, intervals.py) and hand on what is left.
set -euo pipefail
unset PYTHONPATH

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/environment"
"$folder/environment/bin/pip" install --quiet math-verify==0.9.0 latex2sympy2-extended==1.11.0 antlr4-python3-runtime==4.13.2

cd "$folder"
environment/bin/python - <<'PYTHON' || { echo "the behaviour has changed" >&2; exit 1; }
import sys

from math_verify import parse, verify

# Given answer, right answer, and whether math-verify takes them for equal.
cases = [
    (r"5 \mathrm{m}", r"5 \mathrm{km}", True),
    (r"113.1 \mathrm{~cm}^{2}", r"113.1 \mathrm{~m}^{2}", True),
    (r"(3,\infty)", "x>3", True),
    ("x>3", r"(3,\infty)", False),
]
said = [verify(parse(f"${right}$"), parse(f"${given}$")) for given, right, _ in cases]
for (given, right, _), equal in zip(cases, said):
    print(f"{given} for {right}: {equal}")
sys.exit(said != [expected for *_, expected in cases])
PYTHON
