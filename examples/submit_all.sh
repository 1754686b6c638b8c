#!/usr/bin/env bash
# The whole recipe: every stage as a Slurm job that waits for the one before, and between them the surgery and the
# averages as jobs without GPUs.
#
#   examples/submit_all.sh --help                   all that it can do, with examples
#   examples/submit_all.sh --nodes 80 --dry-run     print the commands only
#   examples/submit_all.sh --nodes 80               submit what is missing; prints the jobs' numbers
#   examples/submit_all.sh --status                 where the chain stands
#   examples/submit_all.sh --local                  one after the other on this machine, without Slurm
#
# From any directory. What it does is in examples/recipe/, which needs Python 3.12 or newer with the project's packages,
# but no torch: .venv/bin/python, or PYTHON. With CONTAINER_IMAGE, PYTHON is the container's, and python3 is taken here.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=examples/launch.sh
source "$root/examples/launch.sh"
enter_directory "$root"
find_light_python
exec "$LIGHT_PYTHON" -m examples.recipe "$@"
