# shellcheck shell=bash
# What a job of Slurm's brings along: its log, its environment and what is left in it of others, its size, its end.
#
# Sourced by launch.sh. A variable may be Slurm's word about this job, a wish of the user's, or left of another job in
# which sbatch was called; what could harm and is not this job's is taken away before srun sees it.

own_job() { # prints this job as Slurm's programs take it: one task of an array has the number of the whole array
    printf '%s' "$SLURM_JOB_ID"
    if [[ ${SLURM_ARRAY_JOB_ID:-} == "$SLURM_JOB_ID" ]]; then printf '_%s' "${SLURM_ARRAY_TASK_ID:-0}"; fi
}

ask_of_job() { # FORMAT: prints what squeue says of this job, which may be nothing
    (unset "${!SQUEUE_@}" && SLURM_TIME_FORMAT=standard timeout 60 \
        squeue --noheader --jobs="$(own_job)" "$1" 2>/dev/null)
}

keep_log() { # move the log of a job to RUN_ROOT/logs, unless sbatch was given another place
    # The scripts cannot name that directory to Slurm, which replaces no variables in names. Slurm itself writes on into
    # the file that is moved, so it stays the same one; the parts of an earlier start go before it.
    local begun log
    [[ -n ${SLURM_JOB_ID:-} ]] || return 0
    begun=$BEGUN_IN/${SLURM_JOB_NAME:-}-$SLURM_JOB_ID.log log=$RUN_ROOT/logs/${SLURM_JOB_NAME:-}-$SLURM_JOB_ID.log
    [[ /proc/self/fd/1 -ef $begun && ! $begun -ef $log ]] || return 0
    if ! mkdir -p -- "$RUN_ROOT/logs" || ! move_log "$begun" "$log"; then
        tell 'the log stays in %s: it could not be moved to %s\n' "$begun" "$log"
    fi
}

move_log() { # FROM TO: let this script, and its errors unless they go elsewhere, write to TO what it wrote to FROM
    local errors=1
    [[ /proc/self/fd/2 -ef $1 ]] || errors=''
    if [[ $(stat -c %d -- "$1") == "$(stat -c %d -- "${2%/*}")" ]]; then
        if [[ -e $2 ]]; then cat -- "$2" >>"$1" || return; fi
        mv -f -- "$1" "$2" || return
    else
        # On another file system it cannot stay the same file. What Slurm itself writes follows at a restart.
        cat -- "$1" >>"$2" || return
        printf 'the log is %s; below stands what Slurm itself says of the job\n' "$2" >"$1"
    fi
    exec >>"$2"
    if [[ -n $errors ]]; then exec 2>&1; fi
}

settle_job() { # let nothing that the submitting shell left, and no signal of Slurm's to this shell, end the job
    [[ -n ${SLURM_JOB_ID:-} ]] || return 0
    # Slurm's warning is the ranks'. This shell, which --signal=B: means, would die of it; the run has its own clock.
    trap '' USR1
    # srun refuses two of these, and takes the job's memory without any.
    local asked memory=(${SLURM_MEM_PER_CPU:+x} ${SLURM_MEM_PER_GPU:+x} ${SLURM_MEM_PER_NODE:+x})
    if ((${#memory[@]} > 1)); then unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU SLURM_MEM_PER_NODE; fi
    # srun would take these for wishes, too: less than the whole job, other places. SRUN_ARGS is there for wishes. Ranks
    # are counted by the node here, which it refuses beside tasks counted by the GPU.
    unset SLURM_CONSTRAINT SLURM_EXCLUSIVE SLURM_GRES SLURM_NO_KILL SLURM_TIMELIMIT SLURM_WORKING_DIR SLURM_REMOTE_CWD
    unset SLURM_STDINMODE SLURM_STDOUTMODE SLURM_STDERRMODE SRUN_INPUT SRUN_OUTPUT SRUN_ERROR
    unset SLURM_NTASKS_PER_GPU SLURM_NTASKS_PER_TRES SLURM_CLUSTERS
    # These may be of this job, or left of another.
    if [[ -n ${SLURM_GPUS_PER_TASK:-}${SLURM_TRES_PER_TASK:-} ]] && asked=$(ask_of_job --Format=tres-per-task:200) &&
        [[ -n $asked && $asked != *gpu* ]]; then unset SLURM_GPUS_PER_TASK SLURM_TRES_PER_TASK; fi
    # Only a step has the kind of its binding: the step in which sbatch was called, whose cores are not this job's.
    if [[ -n ${SLURM_CPU_BIND_TYPE:-} ]]; then unset "${!SLURM_CPU_BIND@}"; fi
    if [[ -n ${SLURM_MEM_BIND_TYPE:-} ]]; then unset "${!SLURM_MEM_BIND@}"; fi
}

check_started_once() { # refuse to be what a step of several tasks runs
    local parent=''
    { read -r -d '' parent <"/proc/$PPID/cmdline"; } 2>/dev/null || true
    [[ ! $parent =~ ^slurmstepd:\ \[[0-9]+\.[0-9]+\] || ${SLURM_STEP_NUM_TASKS:-1} == 1 ]] ||
        fail "srun started this script as $SLURM_STEP_NUM_TASKS tasks." "It is called once, and starts the ranks itself." \
            "Call it with sbatch, or with bash in an allocation; SRUN_ARGS has further arguments to srun."
}

count_tasks() { # sets NPROC_PER_NODE to the tasks a node that sbatch was asked for, if it was
    # With --ntasks, those of the scripts become the most that a node may have.
    NPROC_PER_NODE=${SLURM_NTASKS_PER_NODE:-}
    [[ $NPROC_PER_NODE =~ ^[1-9][0-9]{0,5}$ && ${SLURM_NTASKS:-} =~ ^[1-9][0-9]{0,6}$ ]] || return 0
    ((SLURM_NTASKS < NNODES * NPROC_PER_NODE)) || return 0
    ((SLURM_NTASKS % NNODES == 0)) || fail "$SLURM_NTASKS tasks cannot be spread evenly over $NNODES nodes." \
        "Every node has the same number of ranks." "Give sbatch --ntasks-per-node instead of --ntasks."
    NPROC_PER_NODE=$((SLURM_NTASKS / NNODES))
}

cores_of_a_rank() { # prints how many cores each rank can have on every node; nothing where that is not known
    local counts=${SLURM_JOB_CPUS_PER_NODE:-${SLURM_CPUS_ON_NODE:-}} count least=''
    if [[ ${SLURM_CPUS_PER_TASK:-} =~ ^[1-9][0-9]*$ ]]; then
        printf '%s' "$SLURM_CPUS_PER_TASK"
        return
    fi
    for count in ${counts//,/ }; do # as in 72(x2),36
        count=${count%%(*}
        [[ $count =~ ^[0-9]+$ ]] || return 0
        if [[ -z $least ]] || ((count < least)); then least=$count; fi
    done
    if [[ -z $least ]] || ((least < NPROC_PER_NODE)); then return; fi
    count=$((least / NPROC_PER_NODE))
    # Slurm counts hardware threads, and two ranks do not share a core: of an odd number it takes one more, for which
    # srun waits for ever where the node does not have it.
    if ((count > 1 && count % 2 && count * NPROC_PER_NODE < least && (count + 1) * NPROC_PER_NODE > least)); then
        count=$((count - 1))
    fi
    printf '%s' "$count"
}

meeting_port() { # prints a port below those that the system deals out, another one at every start
    # Rank 0 takes one of the seven behind it where it is taken.
    local first=20000 last=32760 dealt
    if read -r dealt _ </proc/sys/net/ipv4/ip_local_port_range && ((dealt - 8 < last)); then last=$((dealt - 8)); fi 2>/dev/null
    ((last > first)) || first=1024
    printf '%s' $((first + (RANDOM * 32768 + RANDOM) % (last - first + 1)))
}

look_up_times() { # sets TIME_LIMIT, in words; exports SLURM_JOB_END_TIME, which Slurm does not say before 23.02
    local answer end
    TIME_LIMIT='not known'
    answer=$(ask_of_job --format='%l|%e') || return 0
    [[ $answer =~ ^([^|]+)\|([^$'\n']+) ]] || return 0
    TIME_LIMIT=${BASH_REMATCH[1]} end=${BASH_REMATCH[2]}
    # The variable may be of another job, or older than a change of the limit.
    unset SLURM_JOB_END_TIME
    end=$(date --date="$end" +%s 2>/dev/null) || return 0 # "NONE" or "N/A" for a job without a limit
    TIME_LIMIT+=$(printf ', until %(%Y-%m-%d %H:%M:%S)T' "$end")
    export SLURM_JOB_END_TIME=$end
}
