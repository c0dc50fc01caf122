#!/bin/sh
# Compiles infra/requirements.lock from pyproject.toml; further arguments go to uv, such as --find-links DIR for a local
# CPU wheel of torch. The lock says plain `torch==2.13.0`: each machine takes the build that its index offers.
set -eu
cd "$(dirname "$0")/.."
new=$(mktemp)
uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-emit-find-links --no-emit-index-url \
    --no-header --no-annotate --quiet -o "$new" "$@"
sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/' "$new" > infra/requirements.lock
rm "$new"
! grep -E '^(nvidia|cuda|triton)' infra/requirements.lock
