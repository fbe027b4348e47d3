#!/usr/bin/env bash
# Builds the image where there is no Docker engine and no registry of images: Debian's buildah, with
# base images made by debootstrap under the names that the Dockerfile has. Debian, as root:
#
#   apt-get install --no-install-recommends buildah crun debootstrap
#   deploy/build-image.sh [NAME]
#
# The builder's base is Debian with a C compiler, make and this machine's own Rust toolchain. Base
# images that are there already are used again; BASES=anew makes them anew. TUNED=yes is handed to
# the build: the toolchain here needs `rustup component add llvm-tools` then, before the bases are
# made. With an engine, `docker build -t tollgate .` does the same from the official images.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=${1:-tollgate}
mirror=${MIRROR:-http://deb.debian.org/debian}
# chroot: needs no more than root does, so it works within a container too.
isolation=${ISOLATION:-chroot}
work=""
trap '[[ -z $work ]] || rm -rf -- "$work"' EXIT

# The names of the base images are written once, in the Dockerfile.
mapfile -t bases < <(sed -n 's/^FROM \([^ ]*\).*/\1/p' Dockerfile)
builder=${bases[0]}
runtime=${bases[1]}
suite=${runtime#debian:}
suite=${suite%-slim}

for program in buildah debootstrap rustc; do
    command -v "$program" >/dev/null || { echo "missing: $program" >&2; exit 1; }
done
wanted=$(sed -n 's/^FROM rust:\([0-9.]*\).*/\1/p' Dockerfile)
[[ $(rustc --version) == "rustc $wanted."* ]] || {
    echo "the Dockerfile wants Rust $wanted, this machine has $(rustc --version)" >&2
    exit 1
}

has() { [[ ${BASES:-} != anew ]] && buildah inspect --type image "$1" >/dev/null 2>&1; }

# make NAME FOLDER [SETTING...]: an image of a folder.
make() {
    local image=$1 folder=$2 container
    shift 2
    container=$(buildah from scratch)
    buildah add --quiet "$container" "$folder" / >/dev/null
    buildah config --env PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        --cmd bash "$@" "$container"
    buildah commit --quiet --rm "$container" "docker.io/library/$image" >/dev/null
}

# debian FOLDER [PACKAGE...]
debian() {
    local folder=$1
    shift
    debootstrap --variant=minbase ${1:+--include="$(IFS=,; echo "$*")"} "$suite" "$folder" "$mirror" >/dev/null
    # As the official slim images: no lists, no packages, no documentation.
    rm -rf "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/* \
        "$folder"/usr/share/{doc,man,info,locale}/* "$folder"/var/log/*
}

work=$(mktemp -d)
if ! has "docker.io/library/$runtime"; then
    echo "== base image $runtime"
    debian "$work/runtime"
    make "$runtime" "$work/runtime"
fi
if ! has "docker.io/library/$builder"; then
    echo "== base image $builder"
    debian "$work/builder" ca-certificates gcc libc6-dev make
    mkdir -p "$work/builder/usr/local/rustup" "$work/builder/usr/local/cargo/bin"
    # `bin` and `lib` are all that building takes.
    toolchain=$(rustc --print sysroot)
    cp -a "$toolchain"/{bin,lib} "$work/builder/usr/local/rustup/"
    for program in cargo rustc; do
        ln -s "/usr/local/rustup/bin/$program" "$work/builder/usr/local/cargo/bin/$program"
    done
    make "$builder" "$work/builder" --env CARGO_HOME=/usr/local/cargo
fi

echo "== image $name"
# What this machine has fetched already need not be fetched again; what is fetched besides is lost.
registry=${CARGO_HOME:-$HOME/.cargo}/registry
mkdir -p "$registry"
started=$SECONDS
buildah build --isolation "$isolation" --network host --pull-never --layers --format docker \
    --volume "$registry:/usr/local/cargo/registry:O" --build-arg "TUNED=${TUNED:-no}" --tag "$name" .
echo "== built in $((SECONDS - started)) s"
