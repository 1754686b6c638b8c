#!/usr/bin/env bash
# Stage 1b: align the projector with the deepened decoder; nothing else trains.
#
#   sbatch --nodes=80 examples/realign.sh              on a Slurm cluster
#   bash examples/realign.sh                           on the GPUs of this machine
#   bash examples/realign.sh tokens=1B seed=7          with settings other than those of examples/realign.yaml
#   DRY_RUN=1 WORLD_SIZE=640 ARCHITECTURE=apriel-15b bash examples/realign.sh     what would run
#
# Nodes come from sbatch's command line, partition, account and time limit also from SBATCH_PARTITION, SBATCH_ACCOUNT
# and SBATCH_TIMELIMIT, paths and container from the variables that examples/launch.sh describes. The log goes to
# RUN_ROOT/logs. The same command again resumes from the newest checkpoint.
#
#SBATCH --job-name=realign
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
run_stage realign "$@"
