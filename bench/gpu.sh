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
parts=$(mktemp -d)
# In the tree a result would make what is measured next a changed tree: it comes there at the end.
keep() {
  if [ -s "$parts/joined" ]; then
    mkdir -p bench/results
    cp "$parts/joined" "$result"
  fi
  rm -rf "$parts"
}
trap keep EXIT
failed=0
# Results are written at the end of a run: in parts, an interruption loses one of them. What was
# measured is reported even where a rival was wrong.
for part in decode_attention row_statistics reweighted_softmax scaling generate capture; do
  step "bench/test_$part.py"
  python -m pytest "bench/test_$part.py" --device cuda --benchmark-only -q \
    --benchmark-json="$parts/$part.json" || failed=$?
  mapfile -t measured < <(find "$parts" -name '*.json' -size +0)
  if [ "${#measured[@]}" -gt 0 ]; then
    python -m bench join "${measured[@]}" --out "$parts/joined"
  fi
done
trap - EXIT
keep
python -m bench report "$result"
exit "$failed"
