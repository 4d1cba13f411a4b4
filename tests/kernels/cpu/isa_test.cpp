// SPDX-License-Identifier: MIT
#include <bitladder/core/status.hpp>
#include <bitladder/kernels/cpu/isa.hpp>

#include <doctest/doctest.h>

#include <string>

namespace cpu = bitladder::cpu;

TEST_CASE("plain code runs everywhere, and the best instruction set is a supported one") {
  CHECK(supported(cpu::isa::scalar));
  CHECK(supported(cpu::best_isa()));
  MESSAGE("best instruction set here: " << std::string(to_string(cpu::best_isa())));
}

TEST_CASE("an instruction set has a name") {
  CHECK(std::string(to_string(cpu::isa::scalar)) == "scalar");
  CHECK(std::string(to_string(cpu::isa::avx2)) == "avx2");
  CHECK(std::string(to_string(cpu::isa::avx512)) == "avx512");
  CHECK(std::string(to_string(cpu::isa::avx512_vbmi)) == "avx512_vbmi");
}

TEST_CASE("an instruction set includes those before it, and the machine has them too") {
  for (cpu::isa have : cpu::all_isas) {
    CHECK(includes(have, have));
    CHECK(includes(have, cpu::isa::scalar));
    for (cpu::isa needed : cpu::all_isas) {
      if (have != needed) CHECK(includes(have, needed) != includes(needed, have));
      if (includes(have, needed) && supported(have)) CHECK(supported(needed));
      if (supported(needed)) CHECK(includes(cpu::best_isa(), needed));
    }
  }
}

TEST_CASE("asking for an instruction set that the machine lacks is an error that names both") {
  for (cpu::isa i : cpu::all_isas) {
    if (supported(i)) {
      CHECK_NOTHROW(cpu::detail::require_supported(i, "gemv"));
    } else {
      CHECK_THROWS_AS(cpu::detail::require_supported(i, "gemv"), bitladder::error);
    }
  }
}
