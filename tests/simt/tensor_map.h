#ifndef BATON_TESTS_SIMT_TENSOR_MAP_H_
#define BATON_TESTS_SIMT_TENSOR_MAP_H_

// Tensor maps of the emulated driver: what cuTensorMapEncodeTiled makes, as far as the project's
// kernels use it: layers of rows of BF16 or bytes in boxes 128 bytes wide, with the 128-byte
// swizzle.

#include <cstdint>
#include <string>

namespace baton::simt {

struct TensorBox {
  const char* data = nullptr;
  int64_t element_bytes = 0;
  int64_t columns = 0, rows = 0, layers = 0;
  int64_t row_bytes = 0, layer_bytes = 0;
  int64_t box_rows = 0;
};

// Takes a map apart; otherwise what is wrong with it.
std::string ReadTensorMap(const void* map, TensorBox* box);

// The driver's function of this name, null for those that the emulation does not have.
void* DriverFunction(const std::string& name);

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_TENSOR_MAP_H_
