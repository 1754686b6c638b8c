#!/usr/bin/env bash
# Stage 1: deepen the decoder from 40 to 48 layers, then train it on text.
#
#   sbatch --nodes=80 examples/upscale.sh              on a Slurm cluster
#   bash examples/upscale.sh                           on the GPUs of this machine
#   bash examples/upscale.sh tokens=1B seed=7          with settings other than those of examples/upscale.yaml
#   DRY_RUN=1 WORLD_SIZE=640 ARCHITECTURE=apriel-15b bash examples/upscale.sh     what would run
#
# Nodes come from sbatch's command line, partition, account and time limit also from SBATCH_PARTITION, SBATCH_ACCOUNT
# and SBATCH_TIMELIMIT, paths and container from the variables that examples/launch.sh describes. The log goes to
# RUN_ROOT/logs. The same command again resumes from the newest checkpoint.
#
#SBATCH --job-name=upscale
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --signal=USR1@300
#SBATCH --requeue
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
enter_project "$root"

# The surgery copies bytes and needs no GPU; examples/submit_all.sh does it as a job of its own before this one.
if [[ -z ${DRY_RUN:-} && ! -e $RUN_ROOT/upscaled ]]; then
    work "$PYTHON" tools/upscale_layers.py "${SOURCE_MODEL:-$MODEL_ROOT/pixtral-12b}" "$RUN_ROOT/upscaled" --num-layers 48
fi
run_stage upscale "$@"
