# Compiles every header alone, after macros that other people's headers define: .hpp as C++, .cuh as
# CUDA where there is a compiler for it (CMake's own CMAKE_VERIFY_INTERFACE_HEADER_SETS skips those
# without a word). min and max are not among the macros: Windows' own headers have a switch for
# them, and code that guards against them does not read well.
set(bl_poison
  I                                      # <complex.h>
  B0                                     # <termios.h>
  DOMAIN OVERFLOW                        # <math.h>
  small near far interface IN OUT ERROR  # <windows.h>
  PI                                     # microcontrollers' headers
)

# bl_add_header_check(bitladder_core_headers bitladder::core .cpp include/bitladder/a.hpp ...)
function(bl_add_header_check target library extension)
  set(sources "")
  foreach(header ${ARGN})
    set(text "")
    foreach(macro IN LISTS bl_poison)
      string(APPEND text "#define ${macro} @\n")
    endforeach()
    string(REPLACE "include/" "" name ${header})
    # Twice, to see that it guards itself.
    string(APPEND text "#include <${name}>\n#include <${name}>\n")
    string(MAKE_C_IDENTIFIER ${name} name)
    set(source ${CMAKE_CURRENT_BINARY_DIR}/${target}/${name}${extension})
    file(CONFIGURE OUTPUT ${source} CONTENT "${text}" @ONLY)
    list(APPEND sources ${source})
  endforeach()
  if(sources)
    add_library(${target} OBJECT ${sources})
    target_link_libraries(${target} PRIVATE ${library} bitladder_dev)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O0>)
    set_target_properties(${target} PROPERTIES CXX_EXTENSIONS OFF)
  endif()
endfunction()
