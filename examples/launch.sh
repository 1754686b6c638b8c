# shellcheck shell=bash
# What all stage scripts share: find out where they run, check it, plan the stage, start it, ask to be requeued.
#
# Sourced by the scripts of the stages, which call:  run_stage NAME [key=value ...]
#
# Under Slurm one task a GPU is started by srun, without torchrun between: Slurm's warning signal then reaches every
# rank, and the exit code of the ranks (75: saved, start me again) reaches this script. Elsewhere torchrun starts the
# ranks of this machine, or of several, if NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT are given.
#
# Variables, all optional:
#   RUN_ROOT DATA_ROOT MODEL_ROOT   where runs, corpora and the source model lie (runs, data, models); relative ones
#                                   are relative to the project's directory
#   NPROC_PER_NODE                  ranks on each node (Slurm: tasks a node; else: GPUs found, or 1)
#   CONTAINER_IMAGE                 run inside it: a .sif file by Apptainer, anything else by Slurm's Pyxis
#   CONTAINER_MOUNTS                further mounts, comma-separated, as in /scratch:/scratch
#   PYTHON                          interpreter (the project's .venv if there is one, else python)
#   SRUN_ARGS                       further arguments to srun
#   MASTER_PORT                     where the ranks meet under Slurm (default: one that is free on the first node)
#   ATTEMPTS RETRY_AFTER            how often failures that may pass are tried in a row under Slurm (3), and the seconds
#                                   between (30): ranks that do not meet, a lock still held, a rank that was killed
#   SRUN_WAIT                       seconds that a rank which has ended gives the others, to save or to close (900)
#   SKIP_CHECK=1                    do not plan the stage first
#   DRY_RUN=1                       plan the stage and start nothing
#   WORLD_SIZE                      with DRY_RUN: ranks to plan for
#   ARCHITECTURE                    with DRY_RUN: a preset such as apriel-15b, where init_from does not exist yet

readonly EXIT_USAGE=2 EXIT_REQUEUE=75

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    if (($#)); then printf '  %s\n' "$@" >&2; fi
    exit "$EXIT_USAGE"
}

enter_project() { # ROOT: go there and settle where things lie
    cd -- "$1" || fail "cannot enter $1."
    PROJECT_ROOT=$PWD
    export RUN_ROOT=${RUN_ROOT:-runs} DATA_ROOT=${DATA_ROOT:-data} MODEL_ROOT=${MODEL_ROOT:-models}
    ATTEMPTS=${ATTEMPTS:-3} RETRY_AFTER=${RETRY_AFTER:-30}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    # Tensor parallelism overlaps communication with computation only if kernels start in the order of their launch.
    export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
    find_scheduler
    find_container
    find_python
}

find_scheduler() { # sets SCHEDULER (slurm or local), NNODES, NPROC_PER_NODE, RANKS
    SCHEDULER=local
    if [[ -n ${SLURM_JOB_ID:-} ]] && command -v srun >/dev/null; then SCHEDULER=slurm; fi
    if [[ $SCHEDULER == slurm ]]; then
        NNODES=${SLURM_JOB_NUM_NODES:-${SLURM_NNODES:-}}
        NPROC_PER_NODE=${NPROC_PER_NODE:-${SLURM_NTASKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}}
        [[ -n $NNODES ]] || fail "SLURM_JOB_NUM_NODES is not set in job $SLURM_JOB_ID." "Start with sbatch, or in salloc."
        [[ -n $NPROC_PER_NODE ]] || fail "the number of ranks a node is not known." \
            "Neither NPROC_PER_NODE nor SLURM_NTASKS_PER_NODE nor SLURM_GPUS_ON_NODE is set." \
            "Give it to sbatch: --ntasks-per-node=8 --gpus-per-node=8."
    else
        NNODES=${NNODES:-1}
        if [[ -z ${NPROC_PER_NODE:-} ]]; then
            NPROC_PER_NODE=$( (nvidia-smi --list-gpus 2>/dev/null || true) | wc -l)
            ((NPROC_PER_NODE > 0)) || NPROC_PER_NODE=1
        fi
    fi
    [[ $NNODES =~ ^[1-9][0-9]*$ ]] || fail "NNODES=$NNODES is not a number of nodes."
    [[ $NPROC_PER_NODE =~ ^[1-9][0-9]*$ ]] || fail "NPROC_PER_NODE=$NPROC_PER_NODE is not a number of ranks." \
        "Set NPROC_PER_NODE to the number of GPUs of a node."
    RANKS=$((NNODES * NPROC_PER_NODE))
}

find_container() { # sets SRUN_CONTAINER and IN_CONTAINER, the words that go before a command to run it inside
    SRUN_CONTAINER=() IN_CONTAINER=()
    [[ -n ${CONTAINER_IMAGE:-} ]] || return 0
    local mounts="$PROJECT_ROOT:$PROJECT_ROOT" root
    for root in "$RUN_ROOT" "$DATA_ROOT" "$MODEL_ROOT"; do
        if [[ $root == /* && $root != "$PROJECT_ROOT"/* ]]; then mounts+=",$root:$root"; fi
    done
    mounts+=${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}
    if [[ $CONTAINER_IMAGE == *.sif ]]; then
        command -v apptainer >/dev/null || fail "CONTAINER_IMAGE=$CONTAINER_IMAGE needs apptainer, which is not found."
        IN_CONTAINER=(apptainer exec --nv --bind "$mounts" --pwd "$PROJECT_ROOT" "$CONTAINER_IMAGE")
    elif [[ $SCHEDULER == slurm ]]; then
        SRUN_CONTAINER=(--container-image="$CONTAINER_IMAGE" --container-mounts="$mounts" --container-workdir="$PROJECT_ROOT")
    else
        fail "CONTAINER_IMAGE=$CONTAINER_IMAGE can be used here only as a .sif file, by Apptainer." \
            "Other images are started by Slurm's Pyxis, and this is no Slurm job." \
            "Start this script inside the container instead, without CONTAINER_IMAGE."
    fi
}

find_python() { # sets PYTHON; outside a container, checks that it can run the project
    if [[ -n ${CONTAINER_IMAGE:-} ]]; then
        PYTHON=${PYTHON:-python}
        return 0
    fi
    if [[ -z ${PYTHON:-} ]]; then
        PYTHON=python
        if [[ -x $PROJECT_ROOT/.venv/bin/python ]]; then PYTHON=$PROJECT_ROOT/.venv/bin/python; fi
    fi
    command -v -- "$PYTHON" >/dev/null || fail "the interpreter $PYTHON is not found." \
        "Run 'make setup' in $PROJECT_ROOT, or set PYTHON or CONTAINER_IMAGE."
    "$PYTHON" -c '
import importlib.util, sys
needed = ["pydantic", "yaml", "rich", "numpy"] + ([] if sys.argv[1] else ["torch", "megatron", "safetensors"])
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if sys.version_info < (3, 12):
    sys.exit("Python " + sys.version.split()[0] + " is older than 3.12")
if missing:
    sys.exit("not installed: " + ", ".join(missing))
' "${DRY_RUN:-}" || fail "$PYTHON cannot run this project." "Run 'make setup' in $PROJECT_ROOT, or set PYTHON or CONTAINER_IMAGE."
}

once() { # COMMAND...: run it once, on this node, inside the container if there is one
    if ((${#SRUN_CONTAINER[@]})); then
        srun --nodes=1 --ntasks=1 --export=ALL "${SRUN_CONTAINER[@]}" "$@"
    else
        "${IN_CONTAINER[@]}" "$@"
    fi
}

plan_stage() { # STAGE.yaml [key=value ...]
    local options=(--dry-run --world-size "$RANKS")
    if [[ -n ${DRY_RUN:-} ]]; then
        options=(--dry-run --world-size "${WORLD_SIZE:-$RANKS}")
        if [[ -n ${ARCHITECTURE:-} ]]; then options+=(--architecture "$ARCHITECTURE"); fi
    else
        options+=(--check-data)
    fi
    once "$PYTHON" -m megatron_apriel.train "$@" "${options[@]}"
}

free_port() { # prints a port below those that the system deals out, on which nothing on this node listens
    # Another one after every restart, whose old port may still be held, and for two runs in one allocation.
    local first=20000 last=32767 dealt attempt port
    if read -r dealt _ </proc/sys/net/ipv4/ip_local_port_range && ((dealt - 1 < last)); then last=$((dealt - 1)); fi 2>/dev/null
    ((last > first)) || first=1024
    for ((attempt = 0; attempt < 100; attempt++)); do
        port=$((first + (SLURM_JOB_ID * 31 + ${SLURM_RESTART_COUNT:-0} * 7919 + $$ * 13 + attempt * 101) % (last - first + 1)))
        # Connecting is refused where nothing listens.
        if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            printf '%s' "$port"
            return
        fi
    done
    fail "no port between $first and $last is free on this node." "Set MASTER_PORT to one that is."
}

introduce() { # what a person who reads the log later needs to know first
    local hosts=${SLURM_JOB_NODELIST:-$HOSTNAME} version=''
    version=$(git -C "$PROJECT_ROOT" describe --always --dirty 2>/dev/null) || version='not in a git repository'
    printf -- '---- %(%Y-%m-%d %H:%M:%S)T job %s' -1 "${SLURM_JOB_ID:-none}"
    if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then printf ' (%s_%s)' "$SLURM_ARRAY_JOB_ID" "${SLURM_ARRAY_TASK_ID:-}"; fi
    printf ', restart %s, %s x %s ranks on %s, code %s\n' \
        "${SLURM_RESTART_COUNT:-0}" "$NNODES" "$NPROC_PER_NODE" "$hosts" "$version"
}

find_end_of_job() { # exports SLURM_JOB_END_TIME, seconds since the epoch, where Slurm does not say it (before 23.02)
    local end
    [[ -z ${SLURM_JOB_END_TIME:-} ]] || return 0
    end=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e 2>/dev/null | head -n 1) || return 0
    end=$(date --date="$end" +%s 2>/dev/null) || return 0 # "NONE" or "N/A" for a job without a limit
    export SLURM_JOB_END_TIME=$end
}

train_under_slurm() { # STAGE.yaml [key=value ...]
    local hosts further=() port
    mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
    ((${#hosts[@]})) || fail "scontrol names no hosts for SLURM_JOB_NODELIST=$SLURM_JOB_NODELIST."
    # What a user's shell has of these is of another run; ranks go by Slurm's numbers.
    unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK
    port=${MASTER_PORT:-$(free_port)} || exit $?
    find_end_of_job
    # srun would otherwise bind each rank to one core, too few for decoding images.
    if [[ ${SLURM_CPUS_ON_NODE:-} =~ ^[0-9]+$ ]] && ((SLURM_CPUS_ON_NODE >= NPROC_PER_NODE)); then
        further+=(--cpus-per-task=$((SLURM_CPUS_ON_NODE / NPROC_PER_NODE)))
    fi
    # Words of SRUN_ARGS are meant to be split.
    # shellcheck disable=SC2206
    further+=(${SRUN_ARGS:-})
    # --export: srun would otherwise pass nothing on in a job that was submitted with --export=NONE. The shell between
    # has signals ignored until the run listens to them: Slurm's warning may come while Python starts, and would kill it.
    MASTER_ADDR=${hosts[0]} MASTER_PORT=$port \
        srun --nodes="$NNODES" --ntasks="$RANKS" --ntasks-per-node="$NPROC_PER_NODE" --export=ALL \
        --kill-on-bad-exit=0 --wait="${SRUN_WAIT:-900}" "${further[@]}" "${SRUN_CONTAINER[@]}" \
        bash -c 'trap "" USR1 TERM; exec "$@"' rank "${IN_CONTAINER[@]}" "$PYTHON" -m megatron_apriel.train "$@"
}

train_here() { # STAGE.yaml [key=value ...]
    if ((RANKS == 1)); then
        "${IN_CONTAINER[@]}" "$PYTHON" -m megatron_apriel.train "$@"
        return
    fi
    local rendezvous=(--standalone)
    if ((NNODES > 1)); then
        [[ -n ${NODE_RANK:-} && -n ${MASTER_ADDR:-} && -n ${MASTER_PORT:-} ]] || fail \
            "NNODES=$NNODES without Slurm needs NODE_RANK, MASTER_ADDR and MASTER_PORT." \
            "Every node must know its number and where to meet the others."
        rendezvous=(--nnodes="$NNODES" --node-rank="$NODE_RANK" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT")
    fi
    # torchrun passes signals on to the ranks, but kills them after 30 seconds unless it is set to let them save.
    TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-1800} \
        "${IN_CONTAINER[@]}" "$PYTHON" -m torch.distributed.run "${rendezvous[@]}" \
        --nproc-per-node="$NPROC_PER_NODE" -m megatron_apriel.train "$@"
}

passing_failure() { # CODE: prints what it may be that ended the ranks, where it may pass by itself
    case $1 in
        76) printf 'the ranks did not meet, or another run held the output' ;;
        233) printf 'srun could not start the ranks' ;;
        134 | 135 | 137 | 139) printf 'a rank was ended by signal %s' $(($1 - 128)) ;;
        *) return 1 ;;
    esac
}

train_again_and_again() { # STAGE.yaml [key=value ...]: train under Slurm; failures that may pass are tried again
    local attempt=0 code began reason
    while :; do
        code=0 began=$SECONDS
        train_under_slurm "$@" || code=$?
        reason=$(passing_failure "$code") || return "$code"
        if ((SECONDS - began >= 3600)); then attempt=0; fi # it had worked for a while
        if ((++attempt >= ATTEMPTS)); then
            printf 'error: %s (exit code %s), %s time(s) in a row\n' "$reason" "$code" "$attempt" >&2
            return "$code"
        fi
        printf '%s (exit code %s); attempt %s of %s begins in %s s\n' \
            "$reason" "$code" $((attempt + 1)) "$ATTEMPTS" "$RETRY_AFTER"
        sleep "$RETRY_AFTER"
    done
}

run_stage() { # NAME [key=value ...]: plan, train, and requeue if the run asks for it
    local stage=examples/$1.yaml code=0
    shift
    if [[ -n ${DRY_RUN:-} ]]; then
        plan_stage "$stage" "$@"
        return
    fi
    introduce
    if [[ -z ${SKIP_CHECK:-} ]]; then plan_stage "$stage" "$@" || exit $?; fi
    if [[ $SCHEDULER == slurm ]]; then
        train_again_and_again "$stage" "$@" || code=$?
    else
        train_here "$stage" "$@" || code=$?
    fi
    if ((code == EXIT_REQUEUE)) && [[ $SCHEDULER == slurm ]]; then
        printf 'saved before the end of the job; asking Slurm to start job %s again\n' "$SLURM_JOB_ID"
        scontrol requeue "$SLURM_JOB_ID" || printf 'error: not requeued; start the same command again to resume\n' >&2
    fi
    # Not 0 after a requeue either: jobs that wait for this one must not start yet.
    exit "$code"
}
