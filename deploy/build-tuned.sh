#!/usr/bin/env bash
# Builds target/tuned/tollgate: the release build, arranged by the compiler after a profile of
# Tollgate at work. It builds twice and lets the first build answer some thousand requests, by way of
# the demo upstream, in between. The same source, the same behaviour.
#
#   rustup component add llvm-tools
#   deploy/build-tuned.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/tuned
profiles=$target/profiles
merge=$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin/llvm-profdata
[[ -x $merge ]] || { echo "missing: rustup component add llvm-tools" >&2; exit 1; }
command -v curl >/dev/null || { echo "missing: curl" >&2; exit 1; }

work=$(mktemp -d)
server=""
trap '[[ -z $server ]] || kill "$server" 2>/dev/null; rm -rf -- "$work"' EXIT

build() { # FOLDER FLAG
    RUSTFLAGS="$2" CARGO_TARGET_DIR=$target/$1 cargo build --release --locked
}

echo "== a build that counts"
build counting "-Cprofile-generate=$profiles"
rm -rf -- "$profiles"

echo "== at work"
address=127.0.0.1:${PORT:-18080}
# Nothing of this shell's settings: an upstream or a sink in them would be real.
tollgate=(env --ignore-environment "DATABASE_URL=sqlite://$work/tollgate.db"
    "TOLLGATE_LISTEN=$address" TOLLGATE_LOG=warn "$target/counting/release/tollgate")
"${tollgate[@]}" account create --name tuning --credit 1000 >/dev/null
key=$("${tollgate[@]}" key create --account tuning)
"${tollgate[@]}" serve >"$work/log" 2>&1 &
server=$!
for _ in {1..100}; do
    curl --silent --fail "http://$address/readyz" >/dev/null && break
    sleep 0.1
done
prompt=$(printf 'The books are right, the surface is exact. %.0s' {1..20})
ask() { # MEMBERS REQUESTS
    curl --no-progress-meter --fail --parallel --parallel-max 50 --output /dev/null \
        --header "Authorization: Bearer $key" --header "Content-Type: application/json" \
        --data "{\"model\":\"tollgate-demo\",$1\"messages\":[{\"role\":\"user\",\"content\":\"$prompt\"}]}" \
        "http://$address/v1/chat/completions?[1-$2]"
}
ask '"stream":true,"stream_options":{"include_usage":true},' 2000
ask '"stream":true,' 500
ask '' 1000
kill "$server"
wait "$server" || true
server=""

echo "== the build after it"
"$merge" merge --output="$target/profile" "$profiles"
build built "-Cprofile-use=$target/profile"
cp "$target/built/release/tollgate" "$target/tollgate"
echo "== $target/tollgate"
