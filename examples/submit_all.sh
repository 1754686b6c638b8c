#!/usr/bin/env bash
# The whole recipe: every stage as a Slurm job that waits for the one before, and between them the surgery and the
# averages as jobs without GPUs.
#
#   examples/submit_all.sh --nodes 80               submit everything; prints the job ids
#   examples/submit_all.sh --nodes 80 --dry-run     print the commands only
#   examples/submit_all.sh --local                  one after the other on this machine, without Slurm
#
# What is already there is left out, so after a failure the same command submits what remains. Partition, account and
# time limit come from SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT; for jobs without GPUs, CPU_SBATCH_ARGS may
# hold other ones, as in CPU_SBATCH_ARGS="--partition=cpu". Paths and container: see examples/launch.sh. SOURCE_MODEL is
# the checkpoint to begin with (default MODEL_ROOT/pixtral-12b).
set -euo pipefail

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
}

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    if (($#)); then printf '  %s\n' "$@" >&2; fi
    exit 2
}

nodes='' dry_run='' mode=slurm
while (($#)); do
    case $1 in
        --nodes) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--nodes needs a number." && nodes=$2 && shift ;;
        --nodes=*) nodes=${1#*=} && [[ $nodes =~ ^[1-9][0-9]*$ ]] || fail "--nodes needs a number." ;;
        --dry-run) dry_run=1 ;;
        --local) mode=local ;;
        -h | --help) usage && exit 0 ;;
        *) fail "unknown argument $1." "Arguments: --nodes N, --dry-run, --local, --help." ;;
    esac
    shift
done

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
export PROJECT_ROOT=$PWD RUN_ROOT=${RUN_ROOT:-runs} DATA_ROOT=${DATA_ROOT:-data} MODEL_ROOT=${MODEL_ROOT:-models}
SOURCE_MODEL=${SOURCE_MODEL:-$MODEL_ROOT/pixtral-12b}
if [[ $mode == slurm && -z $dry_run ]] && ! command -v sbatch >/dev/null; then
    fail "sbatch is not found." "Stages are submitted as Slurm jobs." "Add --local to run them here, one after the other."
fi
if [[ $mode == local && -n $nodes ]]; then fail "--nodes goes with Slurm, not with --local."; fi
if [[ ! -e $SOURCE_MODEL && ! -e $RUN_ROOT/upscaled && -z $dry_run ]]; then
    fail "the model to begin with, $SOURCE_MODEL, does not exist." "Set SOURCE_MODEL to a Hugging Face directory of Pixtral-12B."
fi

declare -A job_of=() # name of a step -> its job id

step() { # NAME PRODUCT "NAMES OF STEPS BEFORE" KIND COMMAND...: submit or run one step, unless its product is there
    local name=$1 product=$2 before=$3 kind=$4 options=() ids=() previous id
    shift 4
    if [[ -e $product ]]; then
        printf '%-18s %s is there already\n' "$name" "$product"
        return
    fi
    if [[ $mode == local ]]; then
        printf '%-18s bash %s\n' "$name" "$*"
        if [[ -z $dry_run ]]; then bash "$@"; fi
        return
    fi
    options=(--parsable --job-name="$name")
    if [[ $kind == stage ]]; then
        if [[ -n $nodes ]]; then options+=(--nodes="$nodes"); fi
    else
        # Words of CPU_SBATCH_ARGS are meant to be split.
        # shellcheck disable=SC2206
        options+=(${CPU_SBATCH_ARGS:-})
    fi
    for previous in $before; do
        if [[ -n ${job_of[$previous]:-} ]]; then ids+=("${job_of[$previous]}"); fi
    done
    if ((${#ids[@]})); then
        options+=("--dependency=afterok:$(IFS=: && printf '%s' "${ids[*]}")" --kill-on-invalid-dep=yes)
    fi
    if [[ -n $dry_run ]]; then
        printf '%-18s sbatch %s\n' "$name" "${options[*]} $*"
        job_of[$name]="<id of $name>"
        return
    fi
    id=$(sbatch "${options[@]}" "$@") || fail "sbatch refused $name; what was submitted before it stays in the queue."
    job_of[$name]=${id%%;*}
    printf '%-18s job %s\n' "$name" "${job_of[$name]}"
}

stage() { # NAME STEP_BEFORE
    step "$1" "$RUN_ROOT/$1/final" "$2" stage "examples/$1.sh"
}

average() { # NAME PRODUCT "STEPS BEFORE" ARGUMENTS...
    local name=$1 product=$2 before=$3
    shift 3
    step "$name" "$product" "$before" tool examples/tool.sh tools/average_checkpoints.py "$product" "$@"
}

step surgery "$RUN_ROOT/upscaled" "" tool \
    examples/tool.sh tools/upscale_layers.py "$SOURCE_MODEL" "$RUN_ROOT/upscaled" --num-layers 48
stage upscale surgery
average average_upscale "$RUN_ROOT/upscale/average" upscale --run "$RUN_ROOT/upscale" --equispaced 6
stage realign average_upscale
stage cpt_stage1 realign
average average_cpt1 "$RUN_ROOT/cpt_stage1/average" cpt_stage1 --run "$RUN_ROOT/cpt_stage1" --equispaced 3
stage cpt_stage2 average_cpt1
stage sft cpt_stage2
stage sft_subset sft
stage sft_long sft
average release "$RUN_ROOT/release" "sft_subset sft_long" \
    --checkpoints "$RUN_ROOT/sft_subset/final" "$RUN_ROOT/sft_long/final"
printf 'The released model will be %s.\n' "$RUN_ROOT/release"
