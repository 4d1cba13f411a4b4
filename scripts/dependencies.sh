#!/usr/bin/env bash
# Installs what is missing to build the examples and the tool; with --tests, what the tests and
# benchmarks need too. Where everything is there it changes nothing and uses no network. On Debian
# and Ubuntu it installs by apt-get, without a question; elsewhere it says what to install.
set -euo pipefail

cmake_minimum=3.25
cxx=${CXX:-$(command -v c++ || command -v g++ || command -v clang++ || true)}

has() { command -v "$1" >/dev/null 2>&1; }
has_header() {
  [ -n "$cxx" ] && echo "#include <$1>" |
    "$cxx" -std=c++17 -DPCRE2_CODE_UNIT_WIDTH=8 -x c++ -E - >/dev/null 2>&1
}
cmake_version() { cmake --version 2>/dev/null | sed -n 's/^cmake version \([0-9.]*\).*/\1/p'; }
cmake_is_new_enough() {
  [ "$(printf '%s\n' "$cmake_minimum" "$(cmake_version)" | sort -V | head -n 1)" = "$cmake_minimum" ]
}

tools=()      # packages without which nothing can be built
libraries=()  # packages that CMake can also find elsewhere, or download
[ -n "$cxx" ] || tools+=(g++)
has cmake || tools+=(cmake)
has ninja || has make || tools+=(ninja-build)
has_header nlohmann/json.hpp || libraries+=(nlohmann-json3-dev)
has_header CLI/CLI.hpp || libraries+=(libcli11-dev)
has_header pcre2.h || libraries+=(libpcre2-dev)
if [ "${1:-}" = --tests ]; then
  has_header doctest/doctest.h || libraries+=(doctest-dev)
  has_header benchmark/benchmark.h || libraries+=(libbenchmark-dev)
fi

missing=("${tools[@]}" "${libraries[@]}")
if [ ${#missing[@]} -gt 0 ]; then
  as_root=()
  [ "$(id -u)" = 0 ] || as_root=(sudo -n)
  if has apt-get && "${as_root[@]}" true 2>/dev/null; then
    echo "installing ${missing[*]}"
    log=$(mktemp)
    trap 'rm -f "$log"' EXIT
    install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive
             apt-get install -y -q --no-install-recommends "${missing[@]}")
    # The second try is for a machine whose package lists are old or not there yet.
    if ! "${install[@]}" >"$log" 2>&1 </dev/null &&
       ! { "${as_root[@]}" apt-get update -q && "${install[@]}"; } >"$log" 2>&1 </dev/null; then
      cat "$log" >&2
      echo "apt-get could not install ${missing[*]}" >&2
      [ ${#tools[@]} -eq 0 ] || exit 1
    fi
  else
    echo "To install first (these are Debian's names): ${missing[*]}" >&2
    has apt-get && echo "  sudo apt-get install ${missing[*]}" >&2
    [ ${#tools[@]} -eq 0 ] || exit 1
    echo "Going on: CMake may find them elsewhere, or download them." >&2
  fi
fi

if ! cmake_is_new_enough; then
  echo "CMake $(cmake_version) is too old: $cmake_minimum or newer is needed (pip install cmake," \
       "or https://cmake.org/download)" >&2
  exit 1
fi
