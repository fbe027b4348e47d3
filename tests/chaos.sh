#!/usr/bin/env bash
# An hour of chaos: three replicas on one PostgreSQL with a standby, under load, while one thing
# after the other breaks. Prints what failed, at what second and why, and fails when the books or
# the sinks differ from the upstream's truth, or fewer than 99.9 % of the requests were served.
#
# tests/chaos.sh [--seconds N] [--seed N]      tests/run.sh runs a short one
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export TOLLGATE_TEST_CHAOS_SECONDS=3600
while [[ $# -gt 0 ]]; do
    case $1 in
        --seconds) TOLLGATE_TEST_CHAOS_SECONDS=$2 ;;
        --seed) export TEST_SEED=$2 ;;
        *) echo "usage: tests/chaos.sh [--seconds N] [--seed N]" >&2; exit 2 ;;
    esac
    shift 2
done
exec cargo test --locked --test it chaos::whatever_breaks -- --nocapture
