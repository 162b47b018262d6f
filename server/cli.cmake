# The command line without any subcommand: light, so that its tests link no gRPC.
baton_library(baton_cli SRCS cli.cc cli_help.cc DEPS baton_config baton_base)
target_compile_definitions(baton_cli PRIVATE BATON_DEMO_DIR="${CMAKE_SOURCE_DIR}/models/demo")

# Simulation of redundant experts, without model or gRPC.
baton_library(baton_bench_experts SRCS bench_experts.cc DEPS baton_scheduler)

# The `baton` command: each subcommand is a main_<name>.cc, listed in commands.h and main.cc.
if(TARGET baton_tokenizer)
add_library(baton_main OBJECT main.cc main_bench.cc main_bench_experts.cc main_chat.cc main_check.cc main_decode.cc
            main_experts.cc main_generate.cc main_prefill.cc main_router.cc main_serve.cc)
target_link_libraries(baton_main PUBLIC baton_flags baton_cli baton_roles baton_bench_experts)
add_executable(baton)
target_link_libraries(baton PRIVATE baton_main)
set_target_properties(baton PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
# The same with the native CUDA backend, where there is all that linking it takes: for the tests of this build. To serve
# with it, build the preset `cuda`.
if(BATON_CAN_LINK_CUDA AND NOT BATON_GPU STREQUAL native)
  add_executable(baton_cuda)
  target_link_libraries(baton_cuda PRIVATE baton_main)
  set_target_properties(baton_cuda PROPERTIES BATON_GPU native RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR})
endif()
endif()
