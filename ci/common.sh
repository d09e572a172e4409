# Sourced by the programs beside it: what a machine must have, an environment for a Python, the wheel for it.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# In the folder of another system (ci/newest) it is one of that system's own.
build=${TRIO_OFFLOAD_BUILD:-$root/build}
cd "$root"

# pip asks for nothing and talks little.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore
# An activated environment or an inherited path must not leak into the ones made here.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
# Python's own warnings settings are the tests' business.
unset PYTHONWARNINGS

die() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Says everything that is missing at once, and what to do about each.
check_machine() {
    local missing=()
    python=${PYTHON:-python3}
    if ! command -v "$python" >/dev/null; then
        missing+=("Python: no «$python» (Debian: apt-get install python3 python3-venv libpython3-dev; or set PYTHON to one)")
    elif ! "$python" -c 'import sys; sys.exit(not (sys.version_info >= (3, 10) and sys.implementation.name == "cpython"))'; then
        missing+=("Python: «$python» is $("$python" --version 2>&1), CPython 3.10 or newer is needed (set PYTHON to one)")
    else
        # A shim or a link becomes the interpreter itself.
        python=$("$python" -c 'import sys; print(sys.executable)')
        local reason
        reason=$("$python" ci/find_pythons.py 2>&1 >/dev/null | grep -F "$python is left out" || true)
        if [[ -n $reason ]]; then missing+=("Python: $reason"); fi
    fi
    if ! command -v cargo >/dev/null; then
        missing+=("cargo: Rust $(rust_version) or newer (https://rustup.rs, or apt-get install cargo where that is new enough)")
    elif ! older_or_same "$(rust_version)" "$(cargo --version | cut -d' ' -f2)"; then
        missing+=("cargo: this is $(cargo --version), Rust $(rust_version) or newer is needed (rustup update)")
    fi
    if ! command -v cc >/dev/null; then
        missing+=("a linker: no «cc» (Debian: apt-get install gcc libc6-dev)")
    fi
    local tool component package
    for tool in "$@"; do
        case $tool in
            fmt) component=rustfmt package=rustfmt ;;
            clippy) component=clippy package=rust-clippy ;;
        esac
        if command -v cargo >/dev/null && ! cargo "$tool" --version >/dev/null 2>&1; then
            missing+=("cargo $tool: rustup component add $component (Debian: apt-get install $package)")
        fi
    done
    if ((${#missing[@]})); then
        die "This machine lacks:" "${missing[@]/#/  }"
    fi
}

rust_version() {
    sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1
}

older_or_same() {
    [[ $(printf '%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]
}

# The folder under build/ of everything for one Python: its name says which.
folder_of() {
    "$1" -c '
import hashlib, os, sys, sysconfig
# Two builds of one version (Debian has its own) must not share an environment.
origin = hashlib.sha256(os.path.realpath(os.__file__).encode()).hexdigest()[:6]
print(f"{sys.argv[1]}/py{sys.version_info[0]}{sys.version_info[1]}-{origin}")' "$build"
}

# make_environment PYTHON GROUP...: an environment in build/ with those groups of pyproject.toml and what the package
# depends on, but not the package.
make_environment() {
    environment_in "$(folder_of "$1")" "$@"
}

# The main Python's, the same for all commands: with other groups each would make it anew for the others.
make_main_environment() {
    make_environment "$python" test tools lint bench
}

# environment_in FOLDER PYTHON GROUP...: the same in a folder. Made anew when pyproject.toml has changed since.
environment_in() {
    local folder=$1 interpreter=$2 stamp
    shift 2
    stamp=$(cat pyproject.toml <(echo "$interpreter $*") | sha256sum | cut -c1-16)
    if [[ ! -x $folder/venv/bin/python || ! -e $folder/environment-$stamp ]]; then
        rm -rf "$folder/venv" "$folder"/environment-*
        mkdir -p "$folder"
        new_environment "$folder/venv" "$interpreter"
        local group arguments=() dependencies
        for group in "$@"; do arguments+=(--group "$group"); done
        # Python 3.10 has no tomllib; pip carries one.
        mapfile -t dependencies < <("$folder/venv/bin/python" -c '
from pip._vendor import tomli
with open("pyproject.toml", "rb") as file:
    print(*tomli.load(file)["project"]["dependencies"], sep="\n")')
        "$folder/venv/bin/python" -m pip install --quiet "${arguments[@]}" "${dependencies[@]}"
        touch "$folder/environment-$stamp"
    fi
}

# copy_of_environment FOLDER OTHER PYTHON: one in a folder with the packages, in the same releases, that the environment of the
# python OTHER has, but not ours. Made anew when they have changed.
copy_of_environment() {
    local folder=$1 other=$2 interpreter=$3
    mkdir -p "$folder"
    "$other" -m pip freeze --all --exclude trio-offload >"$folder/packages-now"
    echo "# for $interpreter" >>"$folder/packages-now"
    if ! cmp --silent "$folder/packages-now" "$folder/packages"; then
        rm -rf "$folder/venv" "$folder/packages"
        new_environment "$folder/venv" "$interpreter"
        "$folder/venv/bin/python" -m pip install --quiet --no-deps --requirement "$folder/packages-now"
        mv "$folder/packages-now" "$folder/packages"
    fi
}

# new_environment PLACE PYTHON: an empty one with a pip that knows dependency groups (25.1). Another environment's pip is copied, if
# there is one: it is the same for every Python, and to make one with an old pip that is then replaced takes some ten seconds.
new_environment() {
    local other
    for other in {"$build","$root/build"}/py*/venv/lib/python*/site-packages; do
        if [[ -e $other/../../../../pip-is-new ]]; then
            "$2" -m venv --without-pip "$1"
            cp -a "$other"/pip "$other"/pip-*.dist-info "$1"/lib/python*/site-packages/
            return
        fi
    done
    "$2" -m venv "$1"
    "$1/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
    touch "$1/../pip-is-new"
}

# The environment's python for an interpreter.
environment_python() {
    echo "$(folder_of "$1")/venv/bin/python"
}

# build_wheel PYTHON: into build/wheels, as `pip install .` would. The first build for one Python begins with what another
# one's build has made, because most crates know nothing of Python.
build_wheel() {
    local folder out
    folder=$(folder_of "$1")
    out=$folder/wheel
    begin_with_another_build "$folder" target/release
    rm -rf "$out"
    mkdir -p "$out" "$build/wheels"
    CARGO_TARGET_DIR=$folder/target "$(environment_python "$1")" -m pip wheel --quiet --no-deps --wheel-dir "$out" .
    cp "$out"/*.whl "$build/wheels/"
}

# begin_with_another_build FOLDER PLACE: PLACE in a Python's folder, as it is in another one's. Cargo's folder is kept for
# each Python: pyo3 and all that depends on it would otherwise be built again at each change of Python.
begin_with_another_build() {
    local folder=$1 place=$2 other
    [[ ! -e $folder/$place ]] || return 0
    for other in {"$build","$root/build"}/py*/"$place"; do
        if [[ -e $other ]]; then
            mkdir -p "$(dirname "$folder/$place")"
            cp -a --reflink=auto "$other" "$(dirname "$folder/$place")/"
            return
        fi
    done
}

# install_wheel PYTHON: what build_wheel made, with its dependencies.
install_wheel() {
    local folder
    folder=$(folder_of "$1")
    "$folder/venv/bin/python" -m pip install --quiet "$folder"/wheel/*.whl
    # The version stays the same while the contents change.
    "$folder/venv/bin/python" -m pip install --quiet --no-deps --force-reinstall "$folder"/wheel/*.whl
}

# suite PYTHON ARGUMENTS OF PYTEST: the program pytest, not `python -m pytest`: that would put this folder on sys.path, and the
# suite is to run with what is installed.
suite() {
    local interpreter=$1
    shift
    # Two files at a time: most tests wait for the start of some process, and none relies on being alone. By name: sorted by their
    # number of tests, which is what xdist does, those come last that have few and take long, and one processor is idle.
    # Without restarts: a test that hangs or crashes takes its process along. xdist would run it again, and may then wait for ever,
    # with a process that has one test left and waits for the next.
    "$(dirname "$(environment_python "$interpreter")")/pytest" -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 \
        --durations=5 "$@"
}

# Cargo's environment for an interpreter: what it builds links that Python, and finds its library when it runs.
cargo_for() {
    local interpreter=$1 library
    shift
    library=$("$interpreter" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
    env PYO3_PYTHON="$interpreter" CARGO_TARGET_DIR="$(folder_of "$interpreter")/target" \
        LD_LIBRARY_PATH="$library${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" cargo "$@"
}

# stage NAME COMMAND...: runs it, times it, goes on after a failure. report_stages ends with the table.
stages=()
failures=0
stage() {
    local name=$1 status=0 began=$SECONDS
    shift
    printf '\n=== %s\n' "$name"
    # Not `if` or `||`: inside these bash ignores errexit, also in the subshell.
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    local word=ok
    if ((status)); then
        word="FAILED ($status)"
        failures=$((failures + 1))
    fi
    stages+=("$(printf '%5d s  %s  %s' $((SECONDS - began)) "$name" "$word")")
    return 0
}

# As stage, for what the rest cannot do without.
needed_stage() {
    local before=$failures
    stage "$@"
    if ((failures > before)); then
        report_stages
        exit 1
    fi
}

# begin NAME COMMAND...: a stage beside those that follow, at the lowest priority, for what nobody waits for yet. What it says comes
# with `finish NAME`, which waits for it. Whatever has begun is ended with this program.
begin() {
    local name=$1 notes=$build/beside/${1//[^[:alnum:]]/-}
    shift
    mkdir -p "$build/beside"
    rm -f "$notes".*
    # With job control, so that it has a process group, which can be ended as a whole.
    set -m
    (
        began=$SECONDS
        set +e
        (
            set -e
            renice --priority 19 --pid "$BASHPID" >/dev/null
            "$@"
        ) >"$notes.output" 2>&1 </dev/null
        echo "$? $((SECONDS - began))" >"$notes.ended"
    ) &
    set +m
    beside[$name]=$!
}
declare -A beside=()
trap 'for group in "${beside[@]}"; do kill -- "-$group" 2>/dev/null || true; done' EXIT

finish() {
    local name=$1 notes=$build/beside/${1//[^[:alnum:]]/-} status duration word=ok
    printf '\n=== %s (begun earlier)\n' "$name"
    wait "${beside[$name]}" || true
    unset "beside[$name]"
    cat "$notes.output"
    read -r status duration <"$notes.ended" || { status=1 duration=0; echo "it has been ended" >&2; }
    if ((status)); then
        word="FAILED ($status)"
        failures=$((failures + 1))
    fi
    stages+=("$(printf '%5d s  %s (beside others)  %s' "$duration" "$name" "$word")")
}

# skip NAME REASON: a stage that cannot be on this machine.
skip() {
    printf '\n=== %s\nskipped: %s\n' "$1" "$2"
    stages+=("$(printf '%7s  %s  SKIPPED: %s' "" "$1" "$2")")
}

report_stages() {
    printf '\n=== stages\n'
    printf '%s\n' "${stages[@]}"
    printf '%5d s  in all\n' "$SECONDS"
}
