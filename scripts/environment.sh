# Sourced by the other scripts: makes .venv with what is pinned in constraints.txt, once, and sets
# $python. $1 is what to install, such as "." or ".[test]".
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

find_python() {
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    echo "dreamjax needs Python 3.11 or newer, with venv and pip; none was found" >&2
    return 2
}

make_environment() {
    local wanted stamp="$root/.venv/installed-$(echo "$1" | tr -dc 'a-z')"
    wanted="$(cat "$root/setup.cfg" "$root/constraints.txt" | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if [ ! -x "$python" ]; then
        local base
        base="$(find_python)" || return 2
        echo "making $root/.venv with $("$base" --version)" >&2
        "$base" -m venv "$root/.venv"
    fi
    echo "installing dreamjax and what it needs (about 2 GB on disk, 1 to 3 minutes)" >&2
    (cd "$root" && "$python" -m pip install --quiet --disable-pip-version-check \
        --editable "$1" --constraint constraints.txt)
    echo "$wanted" >"$stamp"
}
