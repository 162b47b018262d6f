# CUDA's toolkit, where there is one: on the PATH, in /usr/local/cuda, or as scripts/setup installs it. Sets
# BATON_CUDA_INCLUDE (its headers), BATON_NVCC and BATON_NCCL_INCLUDE (NCCL's header), empty without; BATON_CUDART,
# BATON_CUBLASLT and BATON_NCCL (libraries).

# Which CUDA backend a program has, by its property BATON_GPU: `native` (GPUs; nvcc), `emulated` (tests/simt) or none. The
# variable says it for all programs that do not choose themselves.
set(BATON_GPU "" CACHE STRING "CUDA backend of the programs: native, emulated, or empty for none")
if(NOT BATON_GPU MATCHES "^(native|emulated|)$")
  message(FATAL_ERROR "BATON_GPU is \"${BATON_GPU}\", expected native, emulated or nothing")
endif()
if(BATON_GPU AND BATON_SANITIZE)
  message(FATAL_ERROR "BATON_GPU=${BATON_GPU} and BATON_SANITIZE=${BATON_SANITIZE}: sanitizers are for builds without a GPU")
endif()
define_property(TARGET PROPERTY BATON_GPU INITIALIZE_FROM_VARIABLE BATON_GPU
                BRIEF_DOCS "Which CUDA backend the program has: native, emulated or none")

file(GLOB baton_cuda_wheels ${CMAKE_SOURCE_DIR}/.venv/lib/python3*/site-packages/nvidia/cu13)
find_program(BATON_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin ${baton_cuda_wheels}/bin)
if(BATON_NVCC)
  get_filename_component(baton_nvcc_file ${BATON_NVCC} REALPATH)
  get_filename_component(baton_nvcc_folder ${baton_nvcc_file} DIRECTORY)
  find_path(BATON_CUDA_INCLUDE cuda_runtime_api.h
            HINTS ${baton_nvcc_folder}/../include ${baton_nvcc_folder}/../targets/x86_64-linux/include NO_DEFAULT_PATH)
endif()
if(NOT BATON_CUDA_INCLUDE)
  set(BATON_CUDA_INCLUDE "")
endif()
find_path(BATON_NCCL_INCLUDE nccl.h HINTS ${BATON_CUDA_INCLUDE} ${baton_cuda_wheels}/../nccl/include)
if(NOT BATON_NCCL_INCLUDE)
  set(BATON_NCCL_INCLUDE "")
endif()
# The runtime is linked statically. cuBLASLt and NCCL are opened when they are first called (base/shared_library.h), so they
# are only looked for here to know a place for them.
set(baton_cuda_libraries ${BATON_CUDA_INCLUDE}/../lib64 ${BATON_CUDA_INCLUDE}/../lib ${BATON_CUDA_INCLUDE}/../lib/x86_64-linux-gnu)
find_library(BATON_CUDART cudart_static HINTS ${baton_cuda_libraries})
find_library(BATON_CUBLASLT NAMES cublasLt libcublasLt.so.13 HINTS ${baton_cuda_libraries})
find_library(BATON_NCCL NAMES nccl libnccl.so.2 HINTS ${baton_cuda_libraries} ${baton_cuda_wheels}/../nccl/lib)
set(BATON_CAN_LINK_CUDA OFF)
if(BATON_NVCC AND BATON_CUDA_INCLUDE AND BATON_NCCL_INCLUDE AND BATON_CUDART AND BATON_CUBLASLT AND BATON_NCCL AND NOT BATON_SANITIZE)
  set(BATON_CAN_LINK_CUDA ON)
endif()
foreach(part NVCC CUDA_INCLUDE NCCL_INCLUDE CUDART CUBLASLT NCCL)
  if(BATON_GPU STREQUAL native AND NOT BATON_${part})
    message(FATAL_ERROR "BATON_GPU=native: BATON_${part} was not found; scripts/setup installs what is missing of CUDA 13")
  endif()
endforeach()
if(BATON_GPU STREQUAL emulated AND NOT BATON_CUDA_INCLUDE)
  message(FATAL_ERROR "BATON_GPU=emulated: CUDA's headers were not found; scripts/setup installs them")
endif()

# The kernels of the CUDA backend: nvcc compiles them for GPUs (kernels/cuda), g++ for the emulation (tests/simt).
set(BATON_CUDA_KERNELS
    ${CMAKE_SOURCE_DIR}/kernels/cuda/copy_rows.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/dispatch_pack.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/dispatch_plan.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/embed.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/gemm_bf16.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/gemm_e4m3.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/gemm_e4m3_hopper.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/gemm_f32.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/gemm_hopper.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/logits_mask.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/mla_decode.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/mla_decode_hopper.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/mla_decode_tensor.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/mla_expand.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/mla_heads.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/mla_heads_tensor.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/mla_prefill.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/moe_combine.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/moe_gate.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/moe_permute.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/pad_rows.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/pages.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/place_scales.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/quantize_fp8.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/rms_norm.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/sum_terms.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/rope_and_page.cu
    ${CMAKE_SOURCE_DIR}/kernels/cuda/sample.cu)
# Its host side.
set(BATON_CUDA_HOST
    ${CMAKE_SOURCE_DIR}/kernels/cuda/cublaslt_gemm.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/cublaslt_plan.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/cublaslt_verdicts.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_device.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/cuda_queue.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/ops_attention.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/ops_dispatch.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/ops_linear.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/ops_logits.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/ops_moe.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/ops_pages.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/ops_rows.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/tensor_map.cc
    ${CMAKE_SOURCE_DIR}/kernels/cuda/weight_maps.cc)

# Collectives and hand-off between GPUs.
set(BATON_NCCL_SOURCES
    ${CMAKE_SOURCE_DIR}/transport/nccl/batch_stream.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/copy_channel.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/cuda_buffers.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/handoff_inbound.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/handoff_message.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/handoff_outbound.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/nccl_address.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/nccl_engine.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/nccl_exchange.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/nccl_gpu_place.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/nccl_group.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/nccl_status.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/nccl_transport.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/one_sided_calls.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/pair_channel.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/payload_memory.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/put_channel.cc
    ${CMAKE_SOURCE_DIR}/transport/nccl/window_memory.cc)

# baton_emulate_cuda(TARGET a.cu ...)
# Compiles .cu files as C++ against tests/simt, into a target of the calling folder. -fsanitize=thread makes the compiler
# call tests/simt/access.cc at every load and store; ThreadSanitizer itself is not linked.
function(baton_emulate_cuda target)
  set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS
    "-fsanitize=thread;--param=tsan-instrument-func-entry-exit=0;-fno-optimize-sibling-calls;-Wno-unknown-pragmas")
  target_sources(${target} PRIVATE ${ARGN})
  target_include_directories(${target} PUBLIC ${CMAKE_SOURCE_DIR}/tests/simt/device)
  target_include_directories(${target} SYSTEM PUBLIC ${BATON_CUDA_INCLUDE})
endfunction()

# What nvcc compiles for; docs/kernels/cuda.md says why these. Files that use what Hopper alone has are *_hopper.cu.
set(BATON_CUDA_ARCHITECTURES 89 90a 100a CACHE STRING "GPU architectures that the kernels are compiled for")

# baton_compile_cuda(TARGET a.cu ...)
# A static library of .cu files, by nvcc. Not by CMake's CUDA language: Debian 12's CMake is older than CUDA 13. What ptxas
# says of each file's kernels is kept beside its object, as a.ptxas.
function(baton_compile_cuda target)
  set(flags -std=c++20 -O3 --fmad=false --expt-relaxed-constexpr -Xptxas=-v -Xcompiler=-Wall,-Wextra,-fPIC -I${CMAKE_SOURCE_DIR}
      -I${CMAKE_SOURCE_DIR}/kernels/cuda/native)
  if(BATON_WERROR)
    list(APPEND flags -Werror=all-warnings)
  endif()
  foreach(source IN LISTS ARGN)
    get_filename_component(name ${source} NAME_WE)
    set(architectures ${BATON_CUDA_ARCHITECTURES})
    if(name MATCHES "_hopper$")
      list(FILTER architectures INCLUDE REGEX "^90")
    endif()
    list(TRANSFORM architectures REPLACE "(.+)" "-gencode=arch=compute_\\1,code=sm_\\1" OUTPUT_VARIABLE targets)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/${name}.cu.o)
    add_custom_command(
      OUTPUT ${object} BYPRODUCTS ${CMAKE_CURRENT_BINARY_DIR}/${name}.ptxas
      COMMAND ${CMAKE_SOURCE_DIR}/kernels/cuda/compile.sh ${CMAKE_CURRENT_BINARY_DIR}/${name}.ptxas
              ${CMAKE_CXX_COMPILER_LAUNCHER} ${BATON_NVCC} ${flags} ${targets} -MD -MF ${object}.d -c ${source} -o ${object}
      DEPENDS ${source} ${CMAKE_SOURCE_DIR}/kernels/cuda/compile.sh DEPFILE ${object}.d
      COMMENT "nvcc ${name}.cu" VERBATIM)
    list(APPEND objects ${object})
  endforeach()
  add_library(${target} STATIC ${objects})
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX)
  target_link_libraries(${target} PUBLIC baton_flags)
endfunction()
