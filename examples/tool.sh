#!/usr/bin/env bash
# Run one of tools/ as a job without GPUs; examples/submit_all.sh does the surgery and the averages with it.
#
#   sbatch examples/tool.sh tools/average_checkpoints.py runs/upscale/average --run runs/upscale --equispaced 6
#   bash examples/tool.sh tools/upscale_layers.py models/pixtral-12b runs/upscaled --num-layers 48
#
#SBATCH --job-name=tool
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail
# Slurm runs a copy of this file, from which the project cannot be found; it is then where sbatch was called.
for root in "${PROJECT_ROOT:-}" "$(dirname -- "${BASH_SOURCE[0]}")/.." "${SLURM_SUBMIT_DIR:-}"; do
    [[ -f $root/examples/launch.sh ]] && break
done
[[ -f $root/examples/launch.sh ]] || { echo "error: set PROJECT_ROOT to the project's directory" >&2 && exit 2; }
# shellcheck source=examples/launch.sh
source "$root/examples/launch.sh"
# One process, whatever the job was given.
NPROC_PER_NODE=1
enter_project "$root"
(($#)) || fail "no tool was named." "Usage: examples/tool.sh tools/NAME.py ARGUMENTS"
[[ -f $1 ]] || fail "there is no tool $1." "Tools: $(printf '%s ' tools/*.py)"
name=${SLURM_JOB_NAME:-${1##*/}} code=0
introduce "$name"
work "$PYTHON" "$@" || code=$?
if ((code)); then conclude "$name" "$code" 'failed; the reason stands above'; fi
conclude "$name" 0 'done; the lines above say where the result is'
