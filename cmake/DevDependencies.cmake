# What our tests, examples and benchmarks need beside the library's own dependencies. A package of
# the system is taken first; else its source is downloaded, pinned by hash. When neither is to be
# had, the message names what to install.
include(FetchContent)

# bl_fetch(doctest URL ... SHA256 ... APT doctest-dev)
# makes the targets of a dependency that was not found on the system.
function(bl_fetch name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "URL;SHA256;APT" "")
  string(TOUPPER ${name} upper)
  if(NOT FETCHCONTENT_SOURCE_DIR_${upper})
    # Downloaded by hand, because FetchContent's own failure does not tell what to do about it.
    get_filename_component(file ${arg_URL} NAME)
    set(archive ${CMAKE_BINARY_DIR}/_deps/${name}-${file})
    set(hash "")
    if(EXISTS ${archive})
      file(SHA256 ${archive} hash)
    endif()
    if(NOT hash STREQUAL arg_SHA256)
      message(STATUS "${name} is not installed: downloading ${arg_URL}")
      file(DOWNLOAD ${arg_URL} ${archive} STATUS result INACTIVITY_TIMEOUT 30)
      list(GET result 0 failed)
      if(failed)
        list(GET result 1 reason)
        file(REMOVE ${archive})
        message(FATAL_ERROR
          "bitladder's tests, examples or benchmarks need ${name}, which is not installed and could "
          "not be downloaded (${reason}).\n"
          "  Debian, Ubuntu: scripts/dependencies.sh --tests, or apt-get install ${arg_APT}\n"
          "  elsewhere: install it where find_package looks (CMAKE_PREFIX_PATH), or unpack\n"
          "  ${arg_URL}\n"
          "  and pass -DFETCHCONTENT_SOURCE_DIR_${upper}=FOLDER\n"
          "The library alone needs none of this: -DBL_BUILD_TESTS=OFF -DBL_BUILD_EXAMPLES=OFF.")
      endif()
    endif()
    set(source URL ${archive} URL_HASH SHA256=${arg_SHA256} DOWNLOAD_EXTRACT_TIMESTAMP ON)
  endif()
  # Later find_package calls, ours and other dependencies', are answered with it too.
  FetchContent_Declare(${name} ${source} SYSTEM OVERRIDE_FIND_PACKAGE)
  FetchContent_MakeAvailable(${name})
  # Only what we link is built, and none of it is installed with us.
  string(TOLOWER ${name} lower)
  set_property(DIRECTORY ${${lower}_SOURCE_DIR} PROPERTY EXCLUDE_FROM_ALL ON)
endfunction()

# Tests and examples read our checkpoints, so they need the io component.
find_package(nlohmann_json 3.9 QUIET)
if(NOT TARGET nlohmann_json::nlohmann_json)
  bl_fetch(nlohmann_json APT nlohmann-json3-dev
    URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
    SHA256 d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
endif()

if(BL_BUILD_EXAMPLES OR BL_BUILD_TESTS)
  # The examples' tokenizer splits text with PCRE2. No find module ships with CMake, so look by hand.
  find_path(BL_PCRE2_INCLUDE_DIR pcre2.h)
  find_library(BL_PCRE2_LIBRARY pcre2-8)
  mark_as_advanced(BL_PCRE2_INCLUDE_DIR BL_PCRE2_LIBRARY)
  add_library(bitladder_pcre2 INTERFACE)
  if(BL_PCRE2_INCLUDE_DIR AND BL_PCRE2_LIBRARY)
    target_include_directories(bitladder_pcre2 SYSTEM INTERFACE ${BL_PCRE2_INCLUDE_DIR})
    target_link_libraries(bitladder_pcre2 INTERFACE ${BL_PCRE2_LIBRARY})
  else()
    set(PCRE2_BUILD_PCRE2GREP OFF CACHE INTERNAL "")
    set(PCRE2_BUILD_TESTS OFF CACHE INTERNAL "")
    bl_fetch(pcre2 APT libpcre2-dev
      URL https://github.com/PCRE2Project/pcre2/releases/download/pcre2-10.44/pcre2-10.44.tar.gz
      SHA256 86b9cb0aa3bcb7994faa88018292bc704cdbb708e785f7c74352ff6ea7d3175b)
    target_link_libraries(bitladder_pcre2 INTERFACE pcre2-8-static)
  endif()

  find_package(CLI11 2.1 QUIET)
  if(NOT TARGET CLI11::CLI11)
    bl_fetch(CLI11 APT libcli11-dev
      URL https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.4.2.tar.gz
      SHA256 f2d893a65c3b1324c50d4e682c0cdc021dd0477ae2c048544f39eed6654b699a)
  endif()
endif()

if(BL_BUILD_TESTS)
  find_package(doctest 2.4.9 QUIET)
  if(NOT TARGET doctest::doctest)
    set(DOCTEST_WITH_TESTS OFF CACHE INTERNAL "")
    set(DOCTEST_NO_INSTALL ON CACHE INTERNAL "")
    bl_fetch(doctest APT doctest-dev
      URL https://github.com/doctest/doctest/archive/refs/tags/v2.4.12.tar.gz
      SHA256 73381c7aa4dee704bd935609668cf41880ea7f19fa0504a200e13b74999c2d70)
  endif()
endif()

if(BL_BUILD_BENCHMARKS)
  find_package(benchmark 1.7 QUIET)
  if(NOT TARGET benchmark::benchmark)
    set(BENCHMARK_ENABLE_TESTING OFF CACHE INTERNAL "")
    set(BENCHMARK_ENABLE_INSTALL OFF CACHE INTERNAL "")
    set(BENCHMARK_ENABLE_WERROR OFF CACHE INTERNAL "")
    bl_fetch(benchmark APT libbenchmark-dev
      URL https://github.com/google/benchmark/archive/refs/tags/v1.9.1.tar.gz
      SHA256 32131c08ee31eeff2c8968d7e874f3cb648034377dfc32a4c377fa8796d84981)
  endif()
endif()
