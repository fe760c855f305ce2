# Sourced by .ci/run and the scripts beside this file: where things lie, and how a program that is missing gets
# onto the machine.
# shellcheck shell=bash disable=SC2034 # `root` and `target` are for those that source this

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
target=${CARGO_TARGET_DIR:-$root/target}
export CARGO_TERM_COLOR=never

# Installs Debian packages; elsewhere it says what is missing.
install_packages() {
    local as_root=()
    ((EUID == 0)) || as_root=(sudo)
    if ! command -v apt-get >/dev/null; then
        echo "please install what Debian calls: $*" >&2
        return 1
    fi
    "${as_root[@]}" apt-get update -qq
    DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -qq -y --no-install-recommends "$@"
}

# needs COMMAND PACKAGE...: installs the packages where there is no such command.
needs() {
    command -v "$1" >/dev/null || install_packages "${@:2}"
}

# with_requirements NAME FILE: the Python of a virtual environment that has the requirements of a file.
with_requirements() {
    local folder=$target/venv-$1
    {
        needs python3 python3 python3-venv
        python3 -c 'import ensurepip, venv' || install_packages python3-venv
        [[ -x $folder/bin/pip ]] || python3 -m venv "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check -r "$2"
    } >&2
    echo "$folder/bin/python"
}
