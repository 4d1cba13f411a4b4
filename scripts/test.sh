#!/usr/bin/env bash
# Builds everything with warnings as errors in build/test and runs every test; ctest's summary is
# the end of the output. Kernels are compiled when there is a CUDA compiler, and run when there is a
# card. BL_NO_CUDA=1 leaves CUDA out, as if it were not installed.
set -euo pipefail
cd "$(dirname "$0")/.."
build=build/test

scripts/dependencies.sh --tests

options=(-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=OFF)
if [ "${BL_NO_CUDA:-0}" != 0 ]; then
  options=(-DCMAKE_DISABLE_FIND_PACKAGE_CUDAToolkit=ON)
  echo "BL_NO_CUDA is set: nothing that needs CUDA is built"
else
  if ! command -v nvcc >/dev/null && [ -x /usr/local/cuda/bin/nvcc ]; then
    PATH=$PATH:/usr/local/cuda/bin
  fi
  card=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 || true)
  if ! command -v nvcc >/dev/null; then
    echo "no CUDA compiler here: kernels are not built"
  elif [ -z "$card" ]; then
    echo "no GPU here: kernels are compiled, the tests labelled gpu are skipped"
  else
    architecture=${card/./}
    [ "$architecture" != 90 ] || architecture=90a  # with Hopper's own instructions
    options+=("-DCMAKE_CUDA_ARCHITECTURES=$architecture")
  fi
fi
if [ ! -e $build/CMakeCache.txt ] && command -v ninja >/dev/null; then
  options+=(-G Ninja)
fi
if command -v ccache >/dev/null; then
  options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
fi

jobs=$(nproc)
cmake --preset ci -B $build "${options[@]}"
cmake --build $build --parallel "$jobs"
exec ctest --test-dir $build --parallel "$jobs" --output-on-failure --no-tests=error
