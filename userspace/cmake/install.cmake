# SPDX-License-Identifier: Apache-2.0
# cmake --install: library, headers, pkg-config, CMake package, man pages, restart-lab. ctl/ installs
# reuseportctl.
include(CMakePackageConfigHelpers)

install(TARGETS reuseport reuseport_static EXPORT reuseport
  LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR}
  INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES include/reuseport/probe.hpp include/reuseport/reuseport.h
  include/reuseport/reuseport.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/reuseport)
install(FILES ../uapi/linux/reuseport.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/reuseport/linux)

# Filled in at install time, when the prefix is known (make install PREFIX=).
install(CODE "
  set(PROJECT_VERSION \"${PROJECT_VERSION}\")
  set(PROJECT_DESCRIPTION \"${PROJECT_DESCRIPTION}\")
  set(LIBDIR \"${CMAKE_INSTALL_LIBDIR}\")
  set(INCLUDEDIR \"${CMAKE_INSTALL_INCLUDEDIR}\")
  configure_file(\"${CMAKE_CURRENT_SOURCE_DIR}/cmake/libreuseport.pc.in\"
    \"${CMAKE_CURRENT_BINARY_DIR}/libreuseport.pc\" @ONLY)")
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/libreuseport.pc
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(package ${CMAKE_INSTALL_LIBDIR}/cmake/reuseport)
configure_package_config_file(cmake/reuseport-config.cmake.in reuseport-config.cmake
  INSTALL_DESTINATION ${package})
write_basic_package_version_file(reuseport-config-version.cmake COMPATIBILITY SameMajorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/reuseport-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/reuseport-config-version.cmake DESTINATION ${package})
install(EXPORT reuseport NAMESPACE reuseport:: FILE reuseport-targets.cmake DESTINATION ${package})

# The lab looks for restart-lab-server beside itself; users run only the lab.
if(REUSEPORT_TOOLS)
  install(TARGETS restart-lab restart-lab-server DESTINATION ${CMAKE_INSTALL_LIBEXECDIR}/restart-lab)
  file(RELATIVE_PATH beside /${CMAKE_INSTALL_SBINDIR}
    /${CMAKE_INSTALL_LIBEXECDIR}/restart-lab/restart-lab)
  install(CODE "
    set(sbin \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${CMAKE_INSTALL_SBINDIR}\")
    file(MAKE_DIRECTORY \"\${sbin}\")
    file(CREATE_LINK \"${beside}\" \"\${sbin}/restart-lab\" SYMBOLIC)")
endif()

foreach(section 3 7 8)
  file(GLOB pages CONFIGURE_DEPENDS man/*.${section})
  install(FILES ${pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
endforeach()
