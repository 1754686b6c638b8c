#!/usr/bin/env bash
# Stage 2, CPT-1: continued pretraining of everything on text and images.
#
#   sbatch --nodes=80 examples/cpt_stage1.sh              on a Slurm cluster
#   bash examples/cpt_stage1.sh                           on the GPUs of this machine
#   bash examples/cpt_stage1.sh tokens=1B seed=7          with settings other than those of examples/cpt_stage1.yaml
#   DRY_RUN=1 WORLD_SIZE=640 ARCHITECTURE=apriel-15b bash examples/cpt_stage1.sh     what would run
#
# Nodes come from sbatch's command line, partition, account and time limit also from SBATCH_PARTITION, SBATCH_ACCOUNT
# and SBATCH_TIMELIMIT, paths and container from the variables that examples/launch.sh describes. The log goes to
# RUN_ROOT/logs. The same command again resumes from the newest checkpoint.
#
#SBATCH --job-name=cpt_stage1
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
run_stage cpt_stage1 "$@"
