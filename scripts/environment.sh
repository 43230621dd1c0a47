# Sourced by the other scripts: makes .venv with what is pinned in constraints.txt, once, and sets
# $python. $1 is what to install, such as "." or ".[test]".
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="$root/.venv/bin/python"

# A Python that the pins were tested with comes before a newer one.
find_python() {
    local wanted candidate
    for wanted in "(3, 11) <= sys.version_info < (3, 14)" "(3, 14) <= sys.version_info"; do
        for candidate in python3 python3.13 python3.12 python3.11; do
            if "$candidate" -c "import sys, venv, ensurepip; sys.exit(not $wanted)" \
                >/dev/null 2>&1; then
                echo "$candidate"
                return
            fi
        done
    done
    echo "dreamjax needs Python 3.11 or newer, with venv and pip; none was found" >&2
    return 2
}

make_environment() {
    local wanted size="1.5 GB" stamp="$root/.venv/installed-$(echo "$1" | tr -dc 'a-z')"
    wanted="$(cd "$root" && cat setup.cfg pyproject.toml constraints.txt | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if [ ! -x "$python" ]; then
        local base
        base="$(find_python)" || return 2
        echo "making $root/.venv with $("$base" --version)" >&2
        "$base" -m venv "$root/.venv"
    fi
    [[ "$1" != *test* ]] || size="2.8 GB with PyTorch"
    echo "installing dreamjax and what it needs ($size on disk, 1 to 3 minutes)" >&2
    (cd "$root" && "$python" -m pip install --quiet --disable-pip-version-check \
        --editable "$1" --constraint constraints.txt)
    echo "$wanted" >"$stamp"
}
