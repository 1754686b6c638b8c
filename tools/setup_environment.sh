#!/usr/bin/env bash
# Create .venv with a Python of at least 3.12 and install the pinned set into it; does nothing if that is already so.
# usage: tools/setup_environment.sh            (PYTHON=/path/to/python3.12 chooses the interpreter)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

EXTRAS=images,wandb,serve,test
state=$(cat setup.py pyproject.toml constraints.txt | cksum | tr ' ' '-')
stamp=.venv/installed-$state
if [ -x .venv/bin/python ] && [ -f "$stamp" ]; then exit 0; fi

suits() {
    # A version is not enough: Debian ships interpreters without venv and pip.
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 12) <= sys.version_info[:2] < (3, 14))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.12 python3 python3.13 "$HOME"/.pyenv/versions/3.12*/bin/python \
        /usr/local/bin/python3.12 /opt/python/3.12*/bin/python; do
        if [ -n "$candidate" ] && suits "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

if [ -x .venv/bin/python ] && ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then
    echo ".venv is damaged or half-made; making it anew" >&2
    rm -rf .venv
fi
if [ ! -x .venv/bin/python ]; then
    rm -rf .venv
    python=$(find_python)
    if [ -n "$python" ]; then
        echo "creating .venv with $("$python" --version) ($(command -v "$python"))"
        "$python" -m venv .venv
    elif command -v uv >/dev/null; then
        echo "no Python 3.12 with venv found; uv provides one"
        uv venv --seed --python 3.12 .venv
    else
        {
            echo "error: no Python 3.12 or 3.13 with venv and pip was found (python3 is $(python3 --version 2>&1 || echo missing))."
            echo "  Megatron Core needs at least 3.12. Install one of:"
            echo "    apt install python3.12 python3.12-venv    (Debian, Ubuntu)"
            echo "    pyenv install 3.12                        (pyenv)"
            echo "    uv                                        (it brings its own Python)"
            echo "  or name an interpreter: make setup PYTHON=/path/to/python3.12"
        } >&2
        exit 1
    fi
fi

echo "installing the pinned set into .venv: about 7 GB, some minutes the first time"
started=$SECONDS
log=.venv/install.log
rm -f "$log"
# pip's own output is hundreds of lines, and most of the time goes into a few of them.
while sleep 20 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
    doing=$(grep -oE '(Collecting|Processing|Downloading|Installing) .*' "$log" 2>/dev/null | tail -n 1 | cut -c 1-80)
    echo "  after $((SECONDS - started)) s: $doing"
done &
trap 'kill $! 2>/dev/null' EXIT
.venv/bin/python -m pip install --quiet --progress-bar off --log "$log" --constraint constraints.txt --editable ".[$EXTRAS]"
rm -f .venv/installed-*
touch "$stamp"
echo "installed in $((SECONDS - started)) s; what README.md runs with python needs: source .venv/bin/activate"
