#!/usr/bin/env bash
# The test command: installs what is missing (Debian, as root), starts a throwaway PostgreSQL on
# loopback, runs every check and every test, and says plainly how it went.
#
# Nothing is skipped: a step that cannot run is a failure. Everything it starts it stops again, by
# process id. Several runs may go on at the same time.
#
# tests/run.sh [VARIABLE=value]...     what makes the tests longer, or a seed
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What was left in the environment must not make less of the tests: it is passed on purpose.
for name in "${!TOLLGATE_TEST_@}"; do
    if [[ $name != TOLLGATE_TEST_CACHE ]]; then unset "$name"; fi
done
unset UPDATE_FAULT_TABLE FAULT_CUT_STEP TEST_SEED
for given in "$@"; do
    if [[ $given != *=* ]]; then
        echo "usage: tests/run.sh [VARIABLE=value]..." >&2
        exit 2
    fi
    export "${given?}"
done

step="start"
started=$SECONDS
cluster=""       # the folder of the throwaway cluster
cluster_pid=""
beside=""        # the session of the SDKs, which prepares them first
sdk_log=""       # what it says

say() { printf '== %s\n' "$*"; }

finish() {
    local status=$?
    trap - EXIT INT TERM
    if [[ -n $beside ]]; then
        kill -- "-$beside" 2>/dev/null || true
    fi
    if [[ -n $sdk_log ]]; then rm -f -- "$sdk_log"; fi
    if [[ -n $cluster_pid ]]; then
        # SIGINT is PostgreSQL's fast shutdown: it does not wait for clients to leave.
        kill -INT "$cluster_pid" 2>/dev/null || true
        wait "$cluster_pid" 2>/dev/null || true
    fi
    if [[ -n $cluster ]]; then
        rm -rf -- "$cluster"
    fi
    if [[ $status -eq 0 ]]; then
        say "PASSED: all checks and tests, in $((SECONDS - started)) s"
    else
        say "FAILED in step: $step (status $status)"
    fi
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

apt_updated=""
# install WHAT_FOR PACKAGE...
install() {
    local reason=$1
    shift
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        echo "missing: $reason. Install it ($*), or run this on Debian as root." >&2
        return 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    if [[ -z $apt_updated ]]; then
        apt-get -qq -o DPkg::Lock::Timeout=600 update
        apt_updated=yes
    fi
    apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@" >/dev/null
}

# Debian would start it as a service: it is only wanted as a program.
install_prometheus() {
    install "Prometheus" prometheus
    if [[ -d /run/systemd/system ]]; then
        systemctl disable --now prometheus >/dev/null 2>&1 || true
    fi
}

# Debian keeps PostgreSQL's server programs out of the PATH.
postgres_bin() {
    local folder
    for folder in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV) \
        "$(dirname "$(command -v initdb 2>/dev/null || echo /nonexistent/initdb)")"; do
        if [[ -x $folder/initdb && -x $folder/postgres ]]; then
            echo "$folder"
            return
        fi
    done
    return 1
}

# PostgreSQL refuses to run as root.
unprivileged() {
    if [[ $EUID -eq 0 ]]; then
        local user=nobody
        if id -u postgres >/dev/null 2>&1; then user=postgres; fi
        exec setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups -- "$@"
    else
        exec "$@"
    fi
}

# In memory where there is plenty: hundreds of databases are made and dropped.
roomy_folder() {
    local enough=$((6 * 1024 * 1024)) room memory
    room=$(df --output=avail -k /dev/shm 2>/dev/null | tail -n 1)
    memory=$(awk '/^MemAvailable:/ {print $2}' /proc/meminfo)
    if [[ -w /dev/shm && ${room:-0} -ge $enough && ${memory:-0} -ge $enough ]]; then
        echo /dev/shm
    else
        echo "${TMPDIR:-/tmp}"
    fi
}

start_postgres() {
    local bin=$1 port try
    cluster=$(mktemp -d "$(roomy_folder)/tollgate-tests.XXXXXX")
    if [[ $EUID -eq 0 ]]; then
        if id -u postgres >/dev/null 2>&1; then chown postgres "$cluster"; else chown nobody "$cluster"; fi
    fi
    (cd "$cluster" && unprivileged "$bin/initdb" --pgdata="$cluster/data" --username=tollgate \
        --auth=trust --encoding=UTF8 --no-locale --no-sync) >"$cluster.log" 2>&1 ||
        { cat "$cluster.log" >&2; rm -f "$cluster.log"; return 1; }
    rm -f "$cluster.log"
    # A free port can only be found by taking it; below the range from which the tests' own
    # connections get theirs. Nothing crashes under it, neither machine nor server; programs that
    # are killed are its clients. So nobody waits for the disk.
    for try in {1..20}; do
        port=$((20000 + RANDOM % 12000))
        (cd "$cluster" && unprivileged "$bin/postgres" -D "$cluster/data" -p "$port" \
            -c listen_addresses=127.0.0.1 -c unix_socket_directories="$cluster" \
            -c max_connections=300 -c fsync=off -c synchronous_commit=off \
            -c full_page_writes=off) >>"$cluster/log" 2>&1 &
        cluster_pid=$!
        # Asked by the socket in our own folder, so that no other server can answer.
        while kill -0 "$cluster_pid" 2>/dev/null; do
            if "$bin/pg_isready" -q -h "$cluster" -p "$port"; then
                export TOLLGATE_TEST_POSTGRES="postgres://tollgate@127.0.0.1:$port/postgres"
                return
            fi
            sleep 0.1
        done
        cluster_pid=""
    done
    cat "$cluster/log" >&2
    return 1
}

step="tools"
if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
    PATH=$HOME/.cargo/bin:$PATH
fi
command -v cargo >/dev/null || { echo "missing: a Rust toolchain (https://rustup.rs)" >&2; exit 1; }
command -v cc >/dev/null || install "a C compiler" gcc libc6-dev
command -v make >/dev/null || install "make" make
command -v curl >/dev/null || install "curl" curl
postgres_bin >/dev/null || install "PostgreSQL's server" postgresql
command -v pgbouncer >/dev/null || [[ -x /usr/sbin/pgbouncer ]] || install "PgBouncer" pgbouncer
[[ -e $(dpkg -L libfaketime 2>/dev/null | grep 'libfaketimeMT.so.1$') ]] ||
    install "a clock that can be set" faketime
{ command -v prometheus && command -v promtool; } >/dev/null || install_prometheus
python3 -c 'import venv, ensurepip' 2>/dev/null || install "Python with venv" python3 python3-venv

step="PostgreSQL"
bin=$(postgres_bin)
start_postgres "$bin"
say "$("$bin/postgres" --version) on ${TOLLGATE_TEST_POSTGRES#postgres://}"

# What the last step downloads comes while the processors compile. Should it not, that step says so.
setsid tests/sdk/run.sh --prepare >/dev/null 2>&1 &
beside=$!

step="cargo fmt --check"
say "$step"
cargo fmt --check

step="cargo clippy"
say "$step"
cargo clippy --locked --all-targets -- -D warnings

step="cargo test --no-run"
say "$step"
cargo test --locked --no-run

# The SDKs wait for one another and leave a processor idle, so both go on at once.
sdk_log=$(mktemp "${TMPDIR:-/tmp}/tollgate-sdk.XXXXXX")
setsid tests/sdk/run.sh >"$sdk_log" 2>&1 &
beside=$!

step="cargo test"
say "$step"
# The tests mostly wait for processes and sockets, so more of them than processors may run at once.
failed=()
RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((4 * $(nproc)))} cargo test --locked || failed+=("$step")

step="SDKs and LiteLLM (tests/sdk/run.sh)"
say "$step"
wait "$beside" || failed+=("$step")
beside=""
cat "$sdk_log"

if [[ ${#failed[@]} -gt 0 ]]; then
    step=$(printf '%s; ' "${failed[@]}")
    exit 1
fi
