# The rule checks find faults that are planted for them.
#   cmake -DSCRIPTS=this folder -DWORK=scratch -P check_planted.cmake
cmake_minimum_required(VERSION 3.25)

set(failed "")

# plant(includes "the fault's text" include/bitladder/core/a.hpp "lines")
function(plant check expected file text)
  file(REMOVE_RECURSE ${WORK})
  set(good "// SPDX-License-Identifier: MIT\n#pragma once\n")
  file(WRITE ${WORK}/include/bitladder/version.hpp
       "${good}#define BL_VERSION_MAJOR 3\n#define BL_VERSION_MINOR 7\n")
  file(WRITE ${WORK}/cmake/Headers.cmake
       "set(BL_CORE_HEADERS include/bitladder/version.hpp include/bitladder/core/a.hpp)\n")
  file(WRITE ${WORK}/include/bitladder/core/a.hpp
       "${good}#include <bitladder/version.hpp>\n#include <bitladder/core/detail/b.hpp>\n"
       "namespace bitladder {\ninline namespace v3_7 {\n")
  execute_process(COMMAND ${CMAKE_COMMAND} -DROOT=${WORK} -P ${SCRIPTS}/check_${check}.cmake
                  RESULT_VARIABLE clean OUTPUT_QUIET ERROR_VARIABLE output)
  if(NOT clean EQUAL 0)
    message(FATAL_ERROR "check_${check} finds fault with a good tree:\n${output}")
  endif()
  file(WRITE ${WORK}/${file} "${text}")
  execute_process(COMMAND ${CMAKE_COMMAND} -DROOT=${WORK} -P ${SCRIPTS}/check_${check}.cmake
                  RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE output)
  if(result EQUAL 0 OR NOT output MATCHES "${expected}")
    set(failed "${failed}\n  ${check}: ${expected}" PARENT_SCOPE)
  endif()
endfunction()

set(inc include/bitladder)
plant(includes "core/ is not above io/" ${inc}/core/a.hpp "#include <bitladder/io/b.hpp>\n")
plant(includes "io/ is not above quantize/" ${inc}/io/b.hpp "#include <bitladder/quantize/c.hpp>\n")
plant(includes "llama/ is not above cli/" examples/llama/d.hpp "#include <cli/e.hpp>\n")
plant(includes "never includes CUDA" ${inc}/kernels/f.hpp "#include <cuda_runtime.h>\n")
plant(includes "never includes CUDA" ${inc}/kernels/f.hpp "#include <bitladder/cuda/g.cuh>\n")
plant(includes "never see CUDA" ${inc}/io/f.cuh "#include <bitladder/cuda/g.cuh>\n")
plant(includes "JSON stays in io" ${inc}/kernels/f.hpp "#include <nlohmann/json.hpp>\n")
plant(includes "parent folder's own" ${inc}/kernels/cpu/f.hpp
      "#include <bitladder/kernels/cuda/detail/h.hpp>\n")
plant(includes "umbrellas are for users" ${inc}/core/a.hpp "#include <bitladder/bitladder.hpp>\n")
plant(includes "from the root" ${inc}/core/a.hpp "#include \"b.hpp\"\n")

set(top "// SPDX-License-Identifier: MIT\n#pragma once\n")
plant(headers "is not listed" ${inc}/core/new.hpp "${top}")
plant(headers "does not exist" cmake/Headers.cmake
      "set(BL_CORE_HEADERS ${inc}/version.hpp ${inc}/core/a.hpp ${inc}/core/gone.hpp)\n")
plant(headers "SPDX" ${inc}/core/a.hpp "#pragma once\n")
plant(headers "pragma once" ${inc}/core/a.hpp "// SPDX-License-Identifier: MIT\n")
plant(headers "macro without BL_" ${inc}/core/a.hpp "${top}#define CHECK 1\n")
plant(headers "using namespace" ${inc}/core/a.hpp "${top}using namespace std\n")
plant(headers "expected .inline namespace v3_7" ${inc}/core/a.hpp
      "${top}namespace bitladder {\ninline namespace v3_6 {\n")

file(REMOVE_RECURSE ${WORK})
if(failed)
  message(FATAL_ERROR "planted faults that were not found:${failed}")
endif()
