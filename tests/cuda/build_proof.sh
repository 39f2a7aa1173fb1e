#!/usr/bin/env bash
# The whole CUDA build without a GPU: a CUDA torch in a venv, pip install, import, what was built.
#
#   tests/cuda/build_proof.sh /tmp/venv     the venv is made if it is not there; several GB
#
# Needs nvcc (on the PATH, or CUDA_HOME). MAX_JOBS limits the compiler processes.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=${1:?a folder for the venv}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
fi
"$venv/bin/python" -c 'import torch' 2>/dev/null || "$venv/bin/pip" install --quiet "torch==2.11.0"

# From a copy of what is committed or staged: a wheel must not depend on stray files.
git ls-files -z | xargs -0 cp --parents -t "$work" 2>/dev/null
start=$SECONDS
VRGA_EXT_CUDA=1 "$venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/wheels" "$work"
echo "built in $((SECONDS - start)) s"
"$venv/bin/pip" install --quiet --force-reinstall --no-deps "$work"/wheels/vrga_ext-*.whl
"$venv/bin/pip" install --quiet "$work"/wheels/vrga_ext-*.whl
du -h --apparent-size "$work"/wheels/*.whl | awk '{print "wheel:", $1}'

cd /
"$venv/bin/python" - <<'PYTHON'
import torch

import vrga_ext
import vrga_ext.ops

info = vrga_ext.build_info()
print(info)
wanted = ["8.0", "8.6", "8.9", "9.0", "10.0+PTX", "12.0+PTX"]
assert list(info.cuda_architectures) == wanted, info.cuda_architectures
for name in ("decode_attention", "row_statistics", "reweighted_softmax"):
    for key in ("CPU", "CUDA"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vrga_ext::{name}", key), (name, key)
print("operations registered for CPU and CUDA")
PYTHON
