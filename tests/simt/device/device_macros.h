#ifndef BATON_TESTS_SIMT_DEVICE_DEVICE_MACROS_H_
#define BATON_TESTS_SIMT_DEVICE_DEVICE_MACROS_H_

// The emulation's side of kernels/cuda/device.h.

#define BATON_KERNEL(threads) void
#define BATON_DEVICE inline __attribute__((always_inline))
#define BATON_GRID_CONSTANT

#endif  // BATON_TESTS_SIMT_DEVICE_DEVICE_MACROS_H_
