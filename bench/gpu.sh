#!/usr/bin/env bash
# Everything that needs a GPU, in one command: build, primitives against the emulator, tests,
# benchmarks, compute-sanitizer. Run in an environment with a CUDA build of torch, and with nvcc.
#
#   bench/gpu.sh               bench/results/gpu-NAME.json, .md and .png: figures, GPU, driver,
#                              versions, commit
#   bench/gpu.sh --installed   the same with the build that is installed
#
# PARTS=FOLDER keeps the results of each part there as they come. What fails is named and does not
# keep the rest from running; the exit status is then not 0.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n=== %s (%s s)\n' "$*" "$SECONDS"; }

failed=()
check() {
  local name=$1
  shift
  step "$name"
  "$@" || failed+=("$name")
}

if [ "${1:-}" != --installed ]; then
  step "build for the GPU at hand"
  capability=$(python -c 'import torch; print(*torch.cuda.get_device_capability(), sep=".")')
  export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$capability}" MAX_JOBS="${MAX_JOBS:-$(nproc)}"
  VRGA_EXT_CUDA=1 pip install --quiet ".[test,bench]"
fi
python -m vrga_ext info
# An editable CPU build in this folder would hide the one that was installed.
python -c 'import sys; from vrga_ext import _library; sys.exit(_library.cuda_unsupported_reason(0, 128) or 0)'

check "primitives: the device against the emulator" python -m tests.gpu.primitives
check "tests" python -m pytest -q -m gpu tests/gpu

step "benchmarks"
name=$(python -c 'import torch; print(torch.cuda.get_device_name(0).lower().replace(" ", "-"))')
result="bench/results/gpu-$name.json"
parts=${PARTS:-$(mktemp -d)}
mkdir -p "$parts"
# In the tree a result would make what is measured next a changed tree: it comes there at the end.
keep() {
  if [ -s "$parts/joined" ]; then
    mkdir -p bench/results
    cp "$parts/joined" "$result"
    python -m bench report "$result"
  fi
  [ -n "${PARTS:-}" ] || rm -rf "$parts"
}
trap keep EXIT
# Results are written at the end of a run: in parts, an interruption loses one of them. What was
# measured is reported even where an implementation was wrong.
for part in decode_attention row_statistics reweighted_softmax scaling generate capture; do
  check "bench/test_$part.py" python -m pytest "bench/test_$part.py" --device cuda \
    --benchmark-only -q --benchmark-json="$parts/$part.json"
  mapfile -t measured < <(find "$parts" -name '*.json' -size +0)
  if [ "${#measured[@]}" -gt 0 ]; then
    python -m bench join "${measured[@]}" --out "$parts/joined"
  fi
done
trap - EXIT
keep

sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
if [ -x "$sanitizer" ]; then
  # Torch's allocator hides the ends of tensors unless every one is its own allocation.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in memcheck racecheck initcheck synccheck; do
    check "compute-sanitizer: $tool" \
      "$sanitizer" --tool "$tool" --error-exitcode 1 python -m tests.gpu.sanitized
  done
else
  step "compute-sanitizer: not installed, left out"
fi

if [ "${#failed[@]}" -gt 0 ]; then
  step "failed"
  printf '%s\n' "${failed[@]}"
  exit 1
fi
