# Build helpers: every folder is one static library, every test one gtest binary with a label.

find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(Protobuf REQUIRED)
find_package(PkgConfig REQUIRED)

find_program(BATON_CCACHE ccache)
if(BATON_CCACHE)
  # Paths relative to the source tree, so that several build folders share one cache.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env CCACHE_BASEDIR=${CMAKE_SOURCE_DIR}
      CCACHE_NOHASHDIR=1 CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime
      ${BATON_CCACHE})
endif()

add_library(baton_flags INTERFACE)
target_include_directories(baton_flags INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR}/gen)
target_compile_options(baton_flags INTERFACE -Wall -Wextra -Wno-missing-field-initializers
                       $<$<BOOL:${BATON_WERROR}>:-Werror> -fno-math-errno -ffp-contract=off)
target_link_libraries(baton_flags INTERFACE Threads::Threads)
if(BATON_SANITIZE)
  foreach(sanitizer IN LISTS BATON_SANITIZE)
    target_compile_options(baton_flags INTERFACE -fsanitize=${sanitizer} -fno-omit-frame-pointer)
    target_link_options(baton_flags INTERFACE -fsanitize=${sanitizer})
  endforeach()
  target_compile_options(baton_flags INTERFACE -fno-sanitize-recover=all)
endif()

# What every test runs with, and every `baton` that it starts. A report of a sanitizer ends the process, so that a test
# which only looks at its children from outside fails as well.
# ThreadSanitizer must not judge what libraries that are not instrumented do among themselves.
set(BATON_TEST_ENVIRONMENT
    # Not detect_stack_use_after_return: its stack frames are less aligned than GCC 12 takes them to be for vectors of 64
    # bytes (GCC bug 110027).
    ASAN_OPTIONS=detect_stack_use_after_return=0
    LSAN_OPTIONS=suppressions=${CMAKE_SOURCE_DIR}/tests/lsan.supp:print_suppressions=0
    TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1:second_deadlock_stack=1:suppressions=${CMAKE_SOURCE_DIR}/tests/tsan.supp
    UBSAN_OPTIONS=print_stacktrace=1)
# Sanitized code may take this many times as long before ctest ends it.
set(BATON_TEST_TIMEOUT_SCALE 1)
if(BATON_SANITIZE)
  # UCX patches madvise and others when it is loaded, which ThreadSanitizer's runtime does not survive.
  list(APPEND BATON_TEST_ENVIRONMENT UCX_MEM_EVENTS=n)
  set(BATON_TEST_TIMEOUT_SCALE 6)
endif()

# baton_test_properties(NAME TIMEOUT seconds LABELS label ...)
# For every test, also those that are no gtest binary. The time limit is that of a build without sanitizers.
function(baton_test_properties name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "LABELS" ${ARGN})
  math(EXPR timeout "${ARG_TIMEOUT} * ${BATON_TEST_TIMEOUT_SCALE}")
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${timeout}
                       ENVIRONMENT "${BATON_TEST_ENVIRONMENT}")
endfunction()

# baton_library(NAME SRCS a.cc ... DEPS target ...)
# A library without sources becomes an INTERFACE library, so that folders can grow into their place.
function(baton_library name)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  if(ARG_SRCS)
    add_library(${name} STATIC ${ARG_SRCS})
    target_link_libraries(${name} PUBLIC baton_flags ${ARG_DEPS})
  else()
    add_library(${name} INTERFACE)
    target_link_libraries(${name} INTERFACE baton_flags ${ARG_DEPS})
  endif()
endfunction()

# baton_test(NAME SRCS a_test.cc ... DEPS target ... LABELS fast|slow|e2e [TIMEOUT seconds])
# One ctest entry per binary: discovery per case costs more start-ups than the tests themselves.
function(baton_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SRCS;DEPS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  add_executable(${name} ${ARG_SRCS})
  target_link_libraries(${name} PRIVATE baton_flags ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE BATON_SOURCE_DIR="${CMAKE_SOURCE_DIR}"
                             BATON_BINARY_DIR="${CMAKE_BINARY_DIR}")
  add_test(NAME ${name} COMMAND ${name})
  baton_test_properties(${name} LABELS ${ARG_LABELS} TIMEOUT ${ARG_TIMEOUT})
endfunction()
