#!/usr/bin/env bash
# Evaluate the checkpoints of runs while they train, or afterwards, by what evaluate: in their stages says.
#
#   sbatch examples/evaluate.sh runs/cpt_stage2 --engine vllm
#   sbatch --gpus-per-node=2 examples/evaluate.sh runs/cpt_stage2 runs/sft --engine vllm --gpus 2
#   bash examples/evaluate.sh runs/cpt_stage2 --once            what waits, on this machine
#
# A job of its own, which needs no place among the nodes of the training. It waits for runs that have not begun and ends
# when all are complete. Before its time is over it asks Slurm to start it again, and then resumes. What follows the
# runs are options of tools/evaluate.py; paths and container are those of examples/launch.sh.
#
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
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
# One process, whatever the job was given.
NPROC_PER_NODE=1
enter_project "$root"
(($#)) || fail "no run was named." "Usage: examples/evaluate.sh RUN [RUN ...] [OPTIONS of tools/evaluate.py]"
name=${SLURM_JOB_NAME:-evaluate} code=0
introduce "$name"
work "$PYTHON" tools/evaluate.py --follow "$@" || code=$?
case $code in
    0) conclude "$name" 0 'done; the scores are in metrics.jsonl of the runs' ;;
    "$EXIT_REQUEUE") request_requeue "$name" ;;
    *) conclude "$name" "$code" 'not all was evaluated; the reasons stand above, and the same command tries again' ;;
esac
