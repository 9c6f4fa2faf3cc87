# SPDX-License-Identifier: Apache-2.0
# Compiler flags of all targets, and helper functions.
include(GoogleTest)

# Hardened, because root runs these programs: position independent, with guarded stack and heap
# functions and read-only relocations.
include(CheckPIESupported)
check_pie_supported()
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
add_compile_options(-fstack-protector-strong -fstack-clash-protection)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|i.86)$")
  add_compile_options(-fcf-protection)
endif()
if(NOT REUSEPORT_SANITIZE AND NOT CMAKE_BUILD_TYPE STREQUAL "Debug")
  add_compile_options(-U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2)
endif()
add_link_options(-Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack)

# The kernel interface: <linux/reuseport.h>, installed as <reuseport/linux/reuseport.h>.
add_library(reuseport_uapi INTERFACE)
target_include_directories(reuseport_uapi INTERFACE ${CMAKE_CURRENT_SOURCE_DIR}/../uapi)
configure_file(${CMAKE_CURRENT_SOURCE_DIR}/../uapi/linux/reuseport.h
  ${CMAKE_BINARY_DIR}/include/reuseport/linux/reuseport.h COPYONLY)

# The public headers
add_library(reuseport_headers INTERFACE)
target_include_directories(reuseport_headers INTERFACE
  ${CMAKE_CURRENT_SOURCE_DIR}/include ${CMAKE_BINARY_DIR}/include)

add_library(reuseport_warnings INTERFACE)
target_compile_options(reuseport_warnings INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion
  $<$<COMPILE_LANGUAGE:CXX>:-Wold-style-cast -Wnon-virtual-dtor>
  $<$<BOOL:${REUSEPORT_WERROR}>:-Werror>)
if(REUSEPORT_SANITIZE)
  # vptr needs RTTI, which the library is built without: it would report every object of its classes
  add_compile_options(-fsanitize=${REUSEPORT_SANITIZE} -fno-sanitize=vptr -fno-omit-frame-pointer
    -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${REUSEPORT_SANITIZE})
endif()

# reuseport_program(NAME SOURCES... [LINK LIBS...]): a program in build/bin, linked with the static
# library, so that it runs from any directory.
function(reuseport_program name)
  cmake_parse_arguments(arg "" "" "LINK" ${ARGN})
  add_executable(${name} ${arg_UNPARSED_ARGUMENTS})
  target_link_libraries(${name} PRIVATE reuseport_static reuseport_uapi reuseport_warnings
    ${arg_LINK})
endfunction()

# The cases of a GoogleTest program that a filter selects, with labels. Labels are joined: a list does
# not reach ctest whole, and -L searches within a label.
function(reuseport_cases name filter)
  string(JOIN "," labels ${ARGN})
  gtest_discover_tests(${name} TEST_FILTER "${filter}" DISCOVERY_MODE PRE_TEST NO_PRETTY_VALUES
    PROPERTIES LABELS "${labels}" TIMEOUT 600)
endfunction()

# reuseport_test(NAME SOURCES... [TOOL] [LINK LIBS...]): a GoogleTest program in build/bin/tests, where
# tests/run finds it; each of its cases is a ctest test. TOOL: of programs that provide the option by
# BPF themselves. See tests/CMakeLists.txt for the labels.
function(reuseport_test name)
  cmake_parse_arguments(arg "TOOL" "" "LINK" ${ARGN})
  set(bpf bpf)
  if(arg_TOOL)
    unset(bpf)
  endif()
  reuseport_program(${name} ${arg_UNPARSED_ARGUMENTS} LINK ${arg_LINK})
  target_link_libraries(${name} PRIVATE reuseport_test_support)
  set_target_properties(${name} PROPERTIES
    RUNTIME_OUTPUT_DIRECTORY ${CMAKE_RUNTIME_OUTPUT_DIRECTORY}/tests)
  reuseport_cases(${name} "-Option*:*/Option*:Stock*:*/Stock*:Patched*" stock ${bpf} patched)
  reuseport_cases(${name} "Stock*:*/Stock*" stock)
  reuseport_cases(${name} "Option*:*/Option*:-*/mptcp*:*/udp*" ${bpf} patched)
  reuseport_cases(${name} "*Option*/mptcp*:*Option*/udp*:Patched*" patched)
endfunction()

# reuseport_bpf(NAME SOURCE [DEFINES...] DEPENDS FILES...): compiles a BPF program, plain C with CO-RE,
# into skeletons/NAME.skel.h below the current binary directory. The object contains the lines of the
# source, and must not contain a directory of this machine.
find_program(CLANG clang REQUIRED)
find_program(BPFTOOL bpftool REQUIRED PATHS /usr/sbin /sbin)
function(reuseport_bpf name source)
  cmake_parse_arguments(arg "" "" "DEPENDS" ${ARGN})
  set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.bpf.o)
  set(skeletons ${CMAKE_CURRENT_BINARY_DIR}/skeletons)
  file(MAKE_DIRECTORY ${skeletons})
  add_custom_command(OUTPUT ${object}
    COMMAND ${CLANG} -target bpf -mcpu=v3 -O2 -g -Wall -Wextra -Wno-unused-parameter -Werror
      ${arg_UNPARSED_ARGUMENTS} -ffile-prefix-map=${PROJECT_SOURCE_DIR}/= -ffile-compilation-dir=. -I${PROJECT_SOURCE_DIR} -I${PROJECT_SOURCE_DIR}/../uapi
      -I/usr/include/${CMAKE_LIBRARY_ARCHITECTURE}
      -c ${CMAKE_CURRENT_SOURCE_DIR}/${source} -o ${object}
    DEPENDS ${source} ${arg_DEPENDS} ${PROJECT_SOURCE_DIR}/option/kernel.bpf.h
    COMMENT "BPF object ${name}.bpf.o" VERBATIM)
  add_custom_command(OUTPUT ${skeletons}/${name}.skel.h
    COMMAND sh -c "\"${BPFTOOL}\" gen skeleton \"${object}\" name ${name} > \"${skeletons}/${name}.skel.h\""
    DEPENDS ${object} VERBATIM)
endfunction()
