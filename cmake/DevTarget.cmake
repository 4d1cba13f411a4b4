# What our own programs are built with and no consumer ever sees: CUDA as a language, and
# bitladder_dev, which carries warnings and sanitizers and is linked PRIVATE, never exported.
if(TARGET bitladder_cuda)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
      set(CMAKE_CUDA_ARCHITECTURES 80)  # the oldest that we test; runs on newer cards by its PTX
    endif()
    enable_language(CUDA)
  endif()
else()
  unset(CMAKE_CUDA_COMPILER CACHE)  # of an earlier configuration of this folder, with CUDA
endif()

set(BL_SANITIZE "" CACHE STRING "Sanitizers for our own host programs, e.g. address,undefined")

add_library(bitladder_dev INTERFACE)
set(warnings -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion)
# nvcc's generated code does not pass -Wshadow and -Wconversion.
set(cuda_warnings -Xcompiler=-Wall,-Wextra)
if(BL_WERROR)
  list(APPEND warnings -Werror)
  list(APPEND cuda_warnings -Werror=all-warnings -Xcompiler=-Werror)
endif()
target_compile_options(bitladder_dev INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:${warnings}>" "$<$<COMPILE_LANGUAGE:CUDA>:${cuda_warnings}>")
if(BL_SANITIZE)
  target_compile_options(bitladder_dev INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${BL_SANITIZE}>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize-recover=all>
    $<$<COMPILE_LANGUAGE:CXX>:-fno-omit-frame-pointer>)
  target_link_options(bitladder_dev INTERFACE -fsanitize=${BL_SANITIZE})
endif()

# All kernels of one precision take minutes to compile for two architectures. Where nothing is going
# to run them, each such target is compiled for one architecture only, in turns, and whatever takes
# the compiler long is left out: a third of the time (115 s to 37 s for the kernels of 5 bits).
option(BL_SPREAD_ARCHITECTURES "Compile each precision for one of the architectures: no card here" OFF)
mark_as_advanced(BL_SPREAD_ARCHITECTURES)
list(LENGTH CMAKE_CUDA_ARCHITECTURES bl_architectures)
if(bl_architectures LESS_EQUAL 1)
  set(BL_SPREAD_ARCHITECTURES OFF)
endif()
function(bl_spread_architectures target turn)
  if(BL_SPREAD_ARCHITECTURES)
    math(EXPR index "${turn} % ${bl_architectures}")
    list(GET CMAKE_CUDA_ARCHITECTURES ${index} architecture)
    set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES ${architecture})
  endif()
endfunction()
if(BL_SPREAD_ARCHITECTURES)
  include(CheckCompilerFlag)
  check_compiler_flag(CUDA --Ofast-compile=max BL_HAS_FAST_COMPILE)
  if(BL_HAS_FAST_COMPILE)
    target_compile_options(bitladder_dev INTERFACE
      $<$<COMPILE_LANGUAGE:CUDA>:--Ofast-compile=max>)
  endif()
endif()
