#!/usr/bin/env bash
# Clients as people use them -> Tollgate -> a real LiteLLM proxy, and a scripted upstream, on SQLite
# and on PostgreSQL: OpenAI's SDKs for Python and JavaScript, LangChain, Vercel's AI SDK, curl, and a
# page in Chromium.
#
# Wants TOLLGATE_TEST_POSTGRES, the URL of a cluster where databases may be made (tests/run.sh
# starts one). Makes its Python and Node environments once, in a cache outside of the repository,
# named by what is in them; with --prepare that is all. Other arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# install WHAT_FOR PACKAGE...
install() {
    local reason=$1
    shift
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        echo "missing: $reason. Install it ($*), or run this on Debian as root." >&2
        return 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq -o DPkg::Lock::Timeout=600 update
    apt-get -qq -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@" >/dev/null
}

python3 -c 'import venv, ensurepip' 2>/dev/null ||
    install "Python (3.11 or newer) with venv" python3 python3-venv
command -v node >/dev/null || install "Node.js (18 or newer)" nodejs
command -v npm >/dev/null || install "npm" npm
command -v chromium >/dev/null || install "Chromium" chromium

cache=${TOLLGATE_TEST_CACHE:-$HOME/.cache/tollgate-tests}
mkdir -p "$cache"
# Another Python or other requirements make another environment.
hash=$({ python3 -c 'import sys; print(sys.version, sys.base_prefix)'; cat requirements.txt; } |
    sha256sum | cut -c1-12)
venv=$cache/venv-$hash

# Two runs at once must not install into the same folder.
exec 9>"$cache/lock"
flock 9
if [[ ! -e $venv/complete ]]; then
    echo "installing the SDK tests' Python packages; this is done once"
    rm -rf -- "$venv"
    python3 -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --no-deps --only-binary=:all: --requirement requirements.txt
    touch "$venv/complete"
fi

# The same for the clients in JavaScript.
hash=$({ node --version; cat node/package-lock.json; } | sha256sum | cut -c1-12)
node=$cache/node-$hash
if [[ ! -e $node/complete ]]; then
    echo "installing the SDK tests' JavaScript packages; this is done once"
    rm -rf -- "$node"
    mkdir -p "$node"
    cp node/package.json node/package-lock.json node/.npmrc "$node/"
    (cd "$node" && npm ci --silent)
    touch "$node/complete"
fi
export SDK_TESTS_NODE_MODULES=$node/node_modules
flock -u 9
exec 9>&-
if [[ ${1:-} == --prepare ]]; then exit; fi

: "${TOLLGATE_TEST_POSTGRES:?the URL of a PostgreSQL cluster; tests/run.sh starts one}"

root=$(cd ../.. && pwd)
# The tests' own build: without them, dependencies would be built again with fewer features.
(cd "$root" && cargo test --locked --quiet --no-run --test it)
target=${CARGO_TARGET_DIR:-target}
[[ $target == /* ]] || target=$root/$target
export SDK_TESTS_TOLLGATE=$target/debug/tollgate

# No __pycache__ in the checkout.
export PYTHONDONTWRITEBYTECODE=1
exec "$venv/bin/python" -m pytest "$@"
