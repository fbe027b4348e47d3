# Tollgate in a container: built in one stage, run in another that holds the binary and little else.
#
#   docker build -t tollgate .
#   docker run -p 8080:8080 -v tollgate:/data -e OPENROUTER_API_KEY=… \
#       --read-only --tmpfs /tmp --init --stop-timeout 75 tollgate
#
# With `--build-arg TUNED=yes` it takes more than twice as long to build, and then a fifth less
# processor time for its work: deploy/build-tuned.sh says how.
#
# It needs an upstream (OPENROUTER_API_KEY, or UPSTREAM_BASE_URL): a container listens on 0.0.0.0,
# and the built-in demo, which gives its answers away, refuses to start there.
#
# On a fresh volume the log shows the first API key, once. Commands run beside the server:
#   docker exec CONTAINER tollgate account list

FROM rust:1.95-slim-bookworm AS build
WORKDIR /build

# The allocator is built by make, which the base does not have.
RUN apt-get update && apt-get install -y --no-install-recommends make

# The dependencies in a layer of their own, built for a program without contents: it is built again
# only when .cargo, Cargo.toml or Cargo.lock change. The benches are named in Cargo.toml and have to
# be there. A tuned build makes its own.
ARG TUNED=no
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
RUN mkdir src benches \
    && echo 'fn main() {}' | tee src/main.rs benches/books.rs benches/compare.rs \
        benches/ledger.rs benches/stream.rs \
    && touch src/lib.rs \
    && { [ "$TUNED" = yes ] || cargo build --release --locked; } \
    && rm -r src

COPY migrations migrations
COPY src src
COPY deploy/build-tuned.sh deploy/
# Cargo goes by times, and the copied files are older than the stub. Tuning takes a tool of the
# compiler's, which is there already where there is no rustup, and asks by curl.
RUN touch src/lib.rs src/main.rs \
    && if [ "$TUNED" = yes ]; then \
        apt-get update && apt-get install -y --no-install-recommends curl \
        && { ! command -v rustup || rustup component add llvm-tools; } \
        && deploy/build-tuned.sh \
        && install -D target/tuned/tollgate target/release/tollgate; \
    else \
        cargo build --release --locked; \
    fi

FROM debian:bookworm-slim

# /data belongs to the user that runs: a fresh named volume takes that over from the image. A folder
# of the host that is mounted there must be writable for uid 10001.
RUN groupadd --gid 10001 tollgate \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data \
        --shell /usr/sbin/nologin tollgate \
    && install --directory --owner=tollgate --group=tollgate --mode=0700 /data
COPY --from=build /build/target/release/tollgate /usr/local/bin/tollgate

# By number, so that an orchestrator can see that it is not root.
USER 10001:10001
WORKDIR /data
VOLUME /data

# PORT makes it listen on 0.0.0.0. Nothing outside /data is written. No certificates are installed:
# the roots for the upstream and for the database are in the binary.
ENV PORT=8080 \
    DATABASE_URL=sqlite:///data/tollgate.db \
    TOLLGATE_LOG_FORMAT=json
EXPOSE 8080

# Streams run on for TOLLGATE_DRAIN_SECONDS (30) after this, and what follows may take 45 seconds:
# give the container 75 before it is killed.
STOPSIGNAL SIGTERM

# Liveness, not readiness: a restart would mend neither the database nor the upstream. There is no
# curl here; bash opens the connection itself.
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["bash", "-c", "exec 3<>\"/dev/tcp/127.0.0.1/$PORT\" && printf 'GET /healthz HTTP/1.0\\r\\n\\r\\n' >&3 && read -r status <&3 && [[ $status == *' 200 '* ]]"]

ENTRYPOINT ["tollgate"]
CMD ["serve"]
