#!/usr/bin/env bash
# Everything that needs a GPU, in one command: build, primitives against the emulator, tests,
# compute-sanitizer, benchmarks. Run in an environment with a CUDA build of torch, and with nvcc.
#
#   bench/gpu.sh            bench/results/gpu-NAME.json, .md and .png: figures, GPU, driver,
#                           versions, commit
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }

step "build for the GPU at hand"
capability=$(python -c 'import torch; print(*torch.cuda.get_device_capability(), sep=".")')
export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$capability}" MAX_JOBS="${MAX_JOBS:-$(nproc)}"
VRGA_EXT_CUDA=1 pip install --quiet ".[test,bench]"
python -m vrga_ext info

step "primitives: the device against the emulator"
python -m tests.gpu.primitives

step "tests"
python -m pytest -q -m gpu tests/gpu

sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
if [ -x "$sanitizer" ]; then
  for tool in memcheck racecheck initcheck synccheck; do
    step "compute-sanitizer: $tool"
    # Torch's allocator hides the ends of tensors unless every one is its own allocation.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$sanitizer" --tool "$tool" --error-exitcode 1 \
      python -m tests.gpu.sanitized
  done
else
  step "compute-sanitizer: not installed, left out"
fi

step "benchmarks"
name=$(python -c 'import torch; print(torch.cuda.get_device_name(0).lower().replace(" ", "-"))')
result="bench/results/gpu-$name.json"
mkdir -p bench/results
failed=0
# What was measured is reported even where a rival was wrong.
python -m pytest bench --device cuda --benchmark-only -q --benchmark-json="$result" || failed=$?
python -m bench report "$result"
exit "$failed"
