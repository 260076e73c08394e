# Headers of the LibTorch stable ABI, and the names (not the code) of the libraries behind it.
#
# torch is not imported when its files can be found: under pip's build isolation the site-packages of
# the target environment is off sys.path, but still at Python_SITELIB. MC_TORCH_ROOT overrides.
find_path(TorchStable_INCLUDE_DIR torch/csrc/stable/library.h
  HINTS ${MC_TORCH_ROOT} $ENV{MC_TORCH_ROOT} ${Python_SITEARCH}/torch ${Python_SITELIB}/torch
  PATH_SUFFIXES include NO_DEFAULT_PATH)
if(NOT TorchStable_INCLUDE_DIR)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c
      "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE _torch_root OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  find_path(TorchStable_INCLUDE_DIR torch/csrc/stable/library.h
    HINTS ${_torch_root}/include NO_DEFAULT_PATH)
endif()

if(TorchStable_INCLUDE_DIR)
  file(STRINGS ${TorchStable_INCLUDE_DIR}/torch/headeronly/version.h _version
    REGEX "define TORCH_VERSION_(MAJOR|MINOR) [0-9]+")
  string(REGEX REPLACE ".*MAJOR ([0-9]+).*MINOR ([0-9]+).*" "\\1.\\2"
    TorchStable_VERSION "${_version}")
  # An empty library with the right SONAME records the dependency; `import torch` has loaded the real
  # one before ours, so libtorch is never linked and any torch from the target version on will do.
  file(WRITE ${CMAKE_BINARY_DIR}/torch_stub.c "")
  foreach(name torch torch_cpu)
    add_library(stub_${name} SHARED ${CMAKE_BINARY_DIR}/torch_stub.c)
    set_target_properties(stub_${name} PROPERTIES
      OUTPUT_NAME ${name} LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/stub)
  endforeach()
  add_library(TorchStable::TorchStable INTERFACE IMPORTED)
  target_include_directories(TorchStable::TorchStable SYSTEM INTERFACE ${TorchStable_INCLUDE_DIR})
  target_link_libraries(TorchStable::TorchStable INTERFACE stub_torch stub_torch_cpu)
  target_link_options(TorchStable::TorchStable INTERFACE LINKER:--no-as-needed)
  # 2.11: without it the library would need the torch whose headers it was compiled with.
  target_compile_definitions(TorchStable::TorchStable INTERFACE
    TORCH_TARGET_VERSION=0x020b000000000000)
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TorchStable
  REQUIRED_VARS TorchStable_INCLUDE_DIR VERSION_VAR TorchStable_VERSION)
