# How consumers get at the targets: one export set per component, so that a host-only consumer
# never meets the toolkit. Expects `components`, the components that this configuration has.

# In the build tree always, even when nothing is installed: a consumer that exports a target of its
# own that links bitladder::core cannot do so unless ours is exported too.
foreach(component ${components})
  export(TARGETS bitladder_${component} NAMESPACE bitladder::
         FILE ${PROJECT_BINARY_DIR}/bitladder-${component}-targets.cmake)
endforeach()

include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(package_dir ${CMAKE_INSTALL_DATAROOTDIR}/cmake/bitladder)  # headers are for any architecture
configure_package_config_file(cmake/bitladderConfig.cmake.in
  ${PROJECT_BINARY_DIR}/bitladderConfig.cmake INSTALL_DESTINATION ${package_dir}
  NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/bitladderConfigVersion.cmake
  COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)

if(BL_INSTALL)
  foreach(component ${components})
    install(TARGETS bitladder_${component} EXPORT bitladder-${component}
            FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
    install(EXPORT bitladder-${component} NAMESPACE bitladder:: DESTINATION ${package_dir}
            FILE bitladder-${component}-targets.cmake)
  endforeach()
  install(FILES ${PROJECT_BINARY_DIR}/bitladderConfig.cmake
                ${PROJECT_BINARY_DIR}/bitladderConfigVersion.cmake
          DESTINATION ${package_dir})
endif()
