# shellcheck shell=bash
# The Python environment of this checkout; sourced by quickstart and test, from the top of the checkout.
#
#   PYTHON                 interpreter to make the environment with (3.10 to 3.13)
#   EDGE_AWQ_VENV          folder of the environment; default: the active one ($VIRTUAL_ENV), else .venv
#   EDGE_AWQ_TORCH_INDEX   package index to take torch from, such as PyTorch's own for CPU-only wheels (much smaller)

readonly TORCH="torch==2.13.0"
readonly SUPPORTED="import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))"

fail() {
    printf 'Error: %s\nHint: %s\n' "$1" "$2" >&2
    exit 1
}

# Print a command as one would type it, then run it.
show() {
    { printf '\n$' && printf ' %q' "$@" && echo; } >&2
    "$@"
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        "$PYTHON" -c "$SUPPORTED" 2>/dev/null || fail "PYTHON=$PYTHON is not a Python 3.10 to 3.13" "name another interpreter"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        if "$candidate" -c "$SUPPORTED" 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.10 to 3.13 found; python3 is $(python3 --version 2>&1 || true)" \
        "install one, or name it: PYTHON=/path/to/python3.12 $0"
}

make_environment() {
    local python
    python=$(find_python)
    "$python" -c "import ensurepip, venv" 2>/dev/null ||
        fail "$python cannot make virtual environments" "on Debian and Ubuntu: sudo apt-get install python3-venv"
    echo "making $1 with $("$python" --version)" >&2
    "$python" -m venv "$1"
}

# prepare_environment EXTRAS: an environment with edge-awq[EXTRAS] in it, first on PATH. Quick when nothing changed.
prepare_environment() {
    local extras=$1 venv=${EDGE_AWQ_VENV:-${VIRTUAL_ENV:-.venv}} stamp wanted
    [[ -e $venv/bin/python ]] || make_environment "$venv"
    venv=$(cd "$venv" && pwd)
    export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
    python -c "$SUPPORTED" || fail "$venv has $(python --version 2>&1), 3.10 to 3.13 is needed" \
        "delete it, or choose another: EDGE_AWQ_VENV=/path $0"

    stamp=$venv/edge-awq-$extras.stamp
    wanted=$({ echo "$PWD $extras $TORCH"; cat setup.py pyproject.toml; } | sha256sum)
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    python -m pip --version >/dev/null 2>&1 || python -m ensurepip --upgrade >&2
    local index=()
    [[ -z ${EDGE_AWQ_TORCH_INDEX:-} ]] || index=(--index-url "$EDGE_AWQ_TORCH_INDEX")
    echo "installing $TORCH and edge-awq[$extras] into $venv" >&2
    python -m pip install --quiet --disable-pip-version-check "${index[@]}" "$TORCH" >&2
    python -m pip install --quiet --disable-pip-version-check -e ".[$extras]" "$TORCH" >&2
    echo "$wanted" >"$stamp"
}
