#!/usr/bin/env bash
# Builds the tool, stores the bundled model once at 2 to 8 bits, and shows that one file at every precision.
# Leaves the table in build/demo.json. Needs no GPU and no CUDA toolkit.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p build
bash scripts/dependencies.sh
options=(-DCMAKE_BUILD_TYPE=Release -DBL_BUILD_TESTS=OFF -DBL_BUILD_BENCHMARKS=OFF)
# Kernels take minutes to compile: only where they can run, and for that card alone.
with_card=no
card=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 || true)
architecture=${card/./}
if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
  PATH=$PATH:/usr/local/cuda/bin
fi
if command -v nvcc >/dev/null && [ "${architecture:-0}" -ge 80 ] 2>/dev/null; then
  [ "$architecture" != 90 ] || architecture=90a  # with Hopper's own instructions
  with_card=yes
  options+=(-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=OFF "-DCMAKE_CUDA_ARCHITECTURES=$architecture")
else
  options+=(-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON)
fi
if [ ! -e build/demo/CMakeCache.txt ] && command -v ninja >/dev/null; then
  options+=(-G Ninja)
fi
cmake -S . -B build/demo "${options[@]}" >build/demo-configure.log 2>&1 ||
  { cat build/demo-configure.log; exit 1; }
cmake --build build/demo --target bitladder_cli --parallel "$(nproc)"

tool=build/demo/bin/bitladder
model=examples/models/small
echo
echo "\$ bitladder quantize $model -o build/demo/small-2to8"
"$tool" quantize "$model" -o build/demo/small-2to8 --overwrite
echo
echo "\$ bitladder demo build/demo/small-2to8 --unquantized $model --text examples/models/held-out.txt --max-windows 24"
"$tool" demo build/demo/small-2to8 --unquantized "$model" --text examples/models/held-out.txt \
  --max-windows 24 --json build/demo.json --svg build/demo.svg
echo
if [ "$with_card" = yes ]; then
  echo "This build runs models on the card as well: --device cuda."
fi
echo "The same rows are in build/demo.json, the chart of bits against perplexity in build/demo.svg."
