# A CBLAS, for what is compared with it (benchmarks) and, with BL_WITH_BLAS, for the examples' long
# prompts. bitladder_cblas exists where one was found.
find_library(BL_CBLAS NAMES openblas cblas)
find_path(BL_CBLAS_INCLUDE cblas.h PATH_SUFFIXES openblas)
mark_as_advanced(BL_CBLAS BL_CBLAS_INCLUDE)
if(BL_CBLAS AND BL_CBLAS_INCLUDE)
  add_library(bitladder_cblas INTERFACE)
  target_include_directories(bitladder_cblas INTERFACE ${BL_CBLAS_INCLUDE})
  target_link_libraries(bitladder_cblas INTERFACE ${BL_CBLAS})
elseif(BL_WITH_BLAS)
  message(FATAL_ERROR "BL_WITH_BLAS: expected a CBLAS (OpenBLAS, say) with its cblas.h, found none")
endif()
