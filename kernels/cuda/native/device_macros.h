#ifndef BATON_KERNELS_CUDA_NATIVE_DEVICE_MACROS_H_
#define BATON_KERNELS_CUDA_NATIVE_DEVICE_MACROS_H_

// nvcc's side of device.h.

#define BATON_KERNEL(threads) __global__ void __launch_bounds__(threads)
#define BATON_DEVICE __device__ __forceinline__
#define BATON_GRID_CONSTANT __grid_constant__

#endif  // BATON_KERNELS_CUDA_NATIVE_DEVICE_MACROS_H_
