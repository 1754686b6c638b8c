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
#   GPU_WAIT                        seconds that the driver may take to say how many GPUs there are (120)
#   CONTAINER_IMAGE                 run inside it: a .sif file by Apptainer, anything else by Slurm's Pyxis
#   CONTAINER_MOUNTS                further mounts, comma-separated, as in /scratch:/scratch
#   PYTHON                          interpreter (the project's .venv if there is one, else python)
#   SRUN_ARGS                       further arguments to srun
#   MASTER_PORT                     where the ranks meet under Slurm (default: another one at every start); where it is
#                                   taken, one of the seven behind it
#   ATTEMPTS RETRY_AFTER            how often failures that may pass are tried in a row under Slurm (3), and the seconds
#                                   between (30): ranks that do not meet, a lock still held, a rank that was killed
#   SRUN_WAIT                       seconds that a rank which has ended gives the others, to save or to close (900)
#   SKIP_CHECK=1                    do not plan the stage first
#   DRY_RUN=1                       plan the stage and start nothing
#   WORLD_SIZE                      with DRY_RUN: ranks to plan for
#   ARCHITECTURE                    with DRY_RUN: a preset such as apriel-15b, where init_from does not exist yet

readonly EXIT_USAGE=2 EXIT_REQUEUE=75
# With it, cd may enter another directory of the same name, and prints it.
unset CDPATH

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    if (($#)); then printf '  %s\n' "$@" >&2; fi
    exit "$EXIT_USAGE"
}

tell() { # FORMAT ...: print to the log, which may be on a full disk: that ends no run
    # shellcheck disable=SC2059
    printf -- "$@" 2>/dev/null || true
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 404)) || fail "bash $BASH_VERSION is older than 4.4."

# shellcheck source=examples/slurm_job.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/slurm_job.sh"

enter_directory() { # ROOT: go there and settle where things lie
    BEGUN_IN=$PWD
    cd -- "$1" || fail "cannot enter $1."
    export PROJECT_ROOT=$PWD
    export RUN_ROOT=${RUN_ROOT:-runs} DATA_ROOT=${DATA_ROOT:-data} MODEL_ROOT=${MODEL_ROOT:-models}
}

enter_project() { # ROOT: go there, move the log below the runs, and find all that a stage or a tool needs
    enter_directory "$1"
    keep_log
    settle_job
    ATTEMPTS=${ATTEMPTS:-3} RETRY_AFTER=${RETRY_AFTER:-30}
    [[ $ATTEMPTS =~ ^[1-9][0-9]{0,5}$ && $RETRY_AFTER =~ ^[0-9]{1,6}$ ]] ||
        fail "ATTEMPTS=$ATTEMPTS and RETRY_AFTER=$RETRY_AFTER must be whole numbers."
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
        [[ -n $NNODES ]] || fail "SLURM_JOB_NUM_NODES is not set in job $SLURM_JOB_ID." "Start with sbatch, or in salloc."
        check_started_once
        if [[ -z ${NPROC_PER_NODE:-} ]]; then count_tasks; fi
        if [[ -z $NPROC_PER_NODE && ${SLURM_GPUS_ON_NODE:-0} != 0 ]]; then NPROC_PER_NODE=$SLURM_GPUS_ON_NODE; fi
        if [[ -z $NPROC_PER_NODE && ${SLURM_TASKS_PER_NODE:-} =~ ^([0-9]+)(\(x[0-9]+\))?$ ]]; then
            NPROC_PER_NODE=${BASH_REMATCH[1]}
        fi
        [[ -n $NPROC_PER_NODE ]] || fail "the number of ranks a node is not known." \
            "Neither NPROC_PER_NODE nor SLURM_NTASKS_PER_NODE nor SLURM_GPUS_ON_NODE is set." \
            "Give it to sbatch: --ntasks-per-node=8 --gpus-per-node=8."
    elif [[ -n ${SLURM_JOB_ID:-} && ${SLURM_JOB_NUM_NODES:-1} != 1 ]]; then
        fail "srun is not found in job $SLURM_JOB_ID, which has $SLURM_JOB_NUM_NODES nodes." \
            "Without it only this node would train. Start the script outside of the container, with CONTAINER_IMAGE."
    else
        NNODES=${NNODES:-1}
        if [[ -z ${NPROC_PER_NODE:-} ]]; then count_gpus; fi
    fi
    [[ $NNODES =~ ^[1-9][0-9]*$ ]] || fail "NNODES=$NNODES is not a number of nodes."
    [[ $NPROC_PER_NODE =~ ^[1-9][0-9]*$ ]] || fail "NPROC_PER_NODE=$NPROC_PER_NODE is not a number of ranks." \
        "Set NPROC_PER_NODE to the number of GPUs of a node."
    RANKS=$((NNODES * NPROC_PER_NODE))
}

count_gpus() { # sets NPROC_PER_NODE to the GPUs that the driver lists, or to 1
    local answer code=0
    GPU_WAIT=${GPU_WAIT:-120} NPROC_PER_NODE=0
    [[ $GPU_WAIT =~ ^[1-9][0-9]{0,5}$ ]] || fail "GPU_WAIT=$GPU_WAIT is not a number of seconds."
    # Only the answer is waited for: who asks a driver whose GPU has failed may not be ended by any signal.
    exec {answer}< <(exec nvidia-smi --list-gpus 2>/dev/null)
    while read -r -t "$GPU_WAIT" -u "$answer" || { code=$? && false; }; do NPROC_PER_NODE=$((NPROC_PER_NODE + 1)); done
    exec {answer}<&-
    if ((code > 128)); then
        kill "$!" 2>/dev/null || true
        fail "nvidia-smi did not answer within $GPU_WAIT s." \
            "A driver whose GPU has failed keeps whoever asks it waiting." \
            "Take another machine, or set NPROC_PER_NODE to the number of GPUs that work."
    fi
    ((NPROC_PER_NODE > 0)) || NPROC_PER_NODE=1
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
    check_python "$PYTHON" ${DRY_RUN:+light}
}

find_light_python() { # sets LIGHT_PYTHON, of this machine and not of a container: for what needs no torch
    LIGHT_PYTHON=${PYTHON:-}
    if [[ -z $LIGHT_PYTHON || -n ${CONTAINER_IMAGE:-} ]]; then
        LIGHT_PYTHON=python3
        if [[ -x $PROJECT_ROOT/.venv/bin/python ]]; then LIGHT_PYTHON=$PROJECT_ROOT/.venv/bin/python; fi
    fi
    check_python "$LIGHT_PYTHON" light
}

check_python() { # INTERPRETER [light]: whether it can run the project, or that part which needs no torch
    local fix="Run 'make setup' in $PROJECT_ROOT, or set PYTHON or CONTAINER_IMAGE."
    if [[ -n ${CONTAINER_IMAGE:-} ]]; then
        fix="Run 'make setup' in $PROJECT_ROOT: the chain is submitted from this machine, outside of the container."
    fi
    command -v -- "$1" >/dev/null || fail "the interpreter $1 is not found." "$fix"
    "$1" -c '
import importlib.util, sys
needed = ["pydantic", "yaml", "rich", "numpy", "filelock"] + ([] if sys.argv[1] else ["torch", "megatron", "safetensors"])
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if sys.version_info < (3, 12):
    sys.exit("Python " + sys.version.split()[0] + " is older than 3.12")
if missing:
    sys.exit("not installed: " + ", ".join(missing))
' "${2:-}" || fail "$1 cannot run this project." "$fix"
}

once() { # COMMAND...: run it once, on this node, inside the container if there is one
    if ((${#SRUN_CONTAINER[@]})); then
        srun --nodes=1 --ntasks=1 --export=ALL "${SRUN_CONTAINER[@]}" "$@"
    else
        "${IN_CONTAINER[@]}" "$@"
    fi
}

to_the_end() { # COMMAND...: run a program; a signal that would end this shell is the program's, whose end is waited for
    # A shell that dies of a signal leaves behind what it runs, and the first process of a container does not die of one.
    # With job control the program does not ignore Ctrl-C, and gets each signal once.
    local child name code=0
    set -m
    "$@" &
    child=$!
    set +m
    # shellcheck disable=SC2064
    for name in HUP INT QUIT TERM; do trap "kill -s $name $child 2>/dev/null || true" "$name"; done
    until wait "$child" || ! kill -0 "$child" 2>/dev/null; do :; done
    wait "$child" || code=$?
    trap - HUP INT QUIT TERM
    return "$code"
}

work() { # COMMAND...: as once, for what takes long
    if [[ $SCHEDULER == slurm ]]; then
        once "$@" # whose signals reach every process of a job
    else
        to_the_end "${IN_CONTAINER[@]}" "$@"
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

versions() { # prints those of what runs
    local project slurm
    project=$(git -C "$PROJECT_ROOT" describe --always --dirty 2>/dev/null) || project='of no git repository'
    printf 'project %s' "$project"
    once "$PYTHON" -c '
import importlib.metadata, platform
print(end=", Python " + platform.python_version())
for name in ("torch", "megatron-core"):
    try:
        print(end=f", {name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
        print(end=f", {name} unknown")
' 2>/dev/null || true
    if [[ $SCHEDULER == slurm ]]; then slurm=$(srun --version 2>/dev/null) && printf ', Slurm %s' "${slurm##* }"; fi
}

introduce() { # NAME: what a person who reads the log later needs to know first, at every start of a job
    local job='no Slurm job'
    if [[ -n ${SLURM_JOB_ID:-} ]]; then
        job="job $SLURM_JOB_ID"
        if [[ -n ${SLURM_ARRAY_JOB_ID:-} ]]; then job+=" (${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-})"; fi
        job+=", restart ${SLURM_RESTART_COUNT:-0}"
    fi
    if [[ ${SLURM_RESTART_COUNT:-0} != 0 ]]; then tell '\n\n'; fi
    tell '---- %(%Y-%m-%d %H:%M:%S)T %s: %s\n' -1 "$1" "$job"
    tell '---- nodes: %s; %s x %s ranks\n' "${SLURM_JOB_NODELIST:-$HOSTNAME}" "$NNODES" "$NPROC_PER_NODE"
    if [[ $SCHEDULER == slurm ]]; then
        look_up_times
        tell '---- time limit: %s\n' "$TIME_LIMIT"
    fi
    tell '---- versions: %s\n' "$(versions)"
}

conclude() { # NAME CODE OUTCOME: the last line of the log; ends the script
    tell '---- %(%Y-%m-%d %H:%M:%S)T %s: %s (exit code %s)\n' -1 "$1" "$3" "$2"
    exit "$2"
}

train_under_slurm() { # STAGE.yaml [key=value ...]
    local further=() cores port
    # What a user's shell has of these is of another run; ranks go by Slurm's numbers.
    unset RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE NODE_RANK GROUP_RANK
    port=${MASTER_PORT:-$(meeting_port)}
    [[ $port =~ ^[1-9][0-9]{0,4}$ ]] || fail "MASTER_PORT=$port is not a port."
    # srun would otherwise bind each rank to one core, too few for decoding images.
    cores=$(cores_of_a_rank)
    # Words of SRUN_ARGS are meant to be split.
    # shellcheck disable=SC2206
    further=(${cores:+--cpus-per-task="$cores"} ${SRUN_ARGS:-})
    # In a shell that is a step itself (srun --pty bash), which would keep its cores from the ranks.
    if [[ -n ${SLURM_STEP_ID:-} && ${ENVIRONMENT:-} != BATCH ]]; then further=(--overlap "${further[@]}"); fi
    # --export: srun would otherwise pass nothing on in a job that was submitted with --export=NONE. MASTER_ADDR: empty
    # means the step's first host, which the ranks know best. The shell between has signals ignored until the run listens
    # to them: Slurm's warning may come while Python starts, and would kill it.
    MASTER_ADDR='' MASTER_PORT=$port \
        srun --nodes="$NNODES" --ntasks="$RANKS" --ntasks-per-node="$NPROC_PER_NODE" --export=ALL \
        --kill-on-bad-exit=0 --wait="${SRUN_WAIT:-900}" "${further[@]}" "${SRUN_CONTAINER[@]}" \
        bash -c 'trap "" USR1 TERM; exec "$@"' rank "${IN_CONTAINER[@]}" "$PYTHON" -m megatron_apriel.train "$@"
}

train_here() { # STAGE.yaml [key=value ...]
    if ((RANKS == 1)); then
        to_the_end "${IN_CONTAINER[@]}" "$PYTHON" -m megatron_apriel.train "$@"
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
        to_the_end "${IN_CONTAINER[@]}" "$PYTHON" -m torch.distributed.run "${rendezvous[@]}" \
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
    local attempt=1 code began reason
    while :; do
        tell '---- attempt %s of %s\n' "$attempt" "$ATTEMPTS"
        code=0 began=$SECONDS
        train_under_slurm "$@" || code=$?
        reason=$(passing_failure "$code") || return "$code"
        if ((SECONDS - began >= 3600)); then attempt=0; fi # it had worked for a while
        if ((attempt >= ATTEMPTS)); then
            tell 'error: %s (exit code %s), %s time(s) in a row\n' "$reason" "$code" "$attempt" >&2
            return "$code"
        fi
        attempt=$((attempt + 1))
        tell '%s (exit code %s); attempt %s of %s begins in %s s\n' \
            "$reason" "$code" "$attempt" "$ATTEMPTS" "$RETRY_AFTER"
        sleep "$RETRY_AFTER"
    done
}

run_stage() { # NAME [key=value ...]: plan, train, and requeue if the run asks for it
    local name=$1 stage=examples/$1.yaml product=$RUN_ROOT/$1/final code=0 word
    shift
    if [[ -n ${DRY_RUN:-} ]]; then
        plan_stage "$stage" "$@"
        return
    fi
    introduce "$name"
    if [[ -z ${SKIP_CHECK:-} ]]; then plan_stage "$stage" "$@" || code=$?; fi
    if ((code)); then
        once "$PYTHON" -m examples.recipe.beginning "$name" "$@" || true
        conclude "$name" "$code" 'not started; the reason stands above'
    fi
    if [[ $SCHEDULER == slurm ]]; then
        train_again_and_again "$stage" "$@" || code=$?
    else
        train_here "$stage" "$@" || code=$?
    fi
    for word; do if [[ $word == output=* ]]; then product=${word#output=}/final; fi; done
    [[ $product == /* ]] || product=$PROJECT_ROOT/$product
    [[ -e $product ]] || product='where the lines above say'
    case $code in
        0) conclude "$name" 0 "complete; the product is $product" ;;
        "$EXIT_REQUEUE") request_requeue "$name" ;;
        130) conclude "$name" 130 'stopped for good; the same command resumes it from what was saved' ;;
        *) conclude "$name" "$code" 'failed; the reason stands above' ;;
    esac
}

request_requeue() { # NAME: end a run that was saved, and let Slurm start the job again
    # Said before: Slurm ends this script when it takes the job back. Not 0 either: jobs that wait for this one must not
    # start yet.
    if [[ $SCHEDULER != slurm ]]; then conclude "$1" "$EXIT_REQUEUE" 'saved; the same command resumes it'; fi
    tell 'saved before the end of the job; asking Slurm to start job %s again\n' "$SLURM_JOB_ID"
    if scontrol requeue "$(own_job)"; then conclude "$1" "$EXIT_REQUEUE" 'saved, and requeued'; fi
    tell 'error: not requeued; start the same command again to resume\n' >&2
    conclude "$1" "$EXIT_REQUEUE" 'saved, but not requeued; the same command resumes it'
}
