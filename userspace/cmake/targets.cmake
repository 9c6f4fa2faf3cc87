# SPDX-License-Identifier: Apache-2.0
# How every target here is compiled, and the helpers the parts use.

# The kernel's side of the contract; only sources see it, installed headers do not need it.
add_library(reuseport_uapi INTERFACE)
target_include_directories(reuseport_uapi INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/../uapi)

add_library(reuseport_warnings INTERFACE)
target_compile_options(reuseport_warnings INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
  $<$<COMPILE_LANGUAGE:CXX>:-Wold-style-cast -Wnon-virtual-dtor>
  $<$<BOOL:${REUSEPORT_WERROR}>:-Werror>)
if(REUSEPORT_SANITIZE)
  # vptr asks for RTTI, which the library is built without: it would doubt every object of its classes
  add_compile_options(-fsanitize=${REUSEPORT_SANITIZE} -fno-sanitize=vptr -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${REUSEPORT_SANITIZE})
endif()

# reuseport_program(NAME SOURCES... [LINK LIBS...]): a program in build/bin, with the static
# library, so that it runs from wherever it is copied to.
function(reuseport_program name)
  cmake_parse_arguments(arg "" "" "LINK" ${ARGN})
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE reuseport_static reuseport_uapi reuseport_warnings
    ${arg_LINK})
endfunction()

# reuseport_test(NAME SOURCES... [LINK LIBS...]): a GoogleTest program in build/bin/tests, which
# tests/run and ctest find.
function(reuseport_test name)
  reuseport_program(${name} ${ARGN})
  target_link_libraries(${name} PRIVATE reuseport_test_support)
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/tests)
  add_test(NAME ${name} COMMAND ${name})
endfunction()
