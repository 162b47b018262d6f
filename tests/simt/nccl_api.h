#ifndef BATON_TESTS_SIMT_NCCL_API_H_
#define BATON_TESTS_SIMT_NCCL_API_H_

// What the files with the calls of the emulated NCCL share.

#include <nccl.h>

#include <memory>
#include <string>

#include "tests/simt/nccl_comm.h"

struct ncclComm {
  std::shared_ptr<baton::simt::NcclComm> comm;  // its operations keep it as well
  bool blocking = true;
};

namespace baton::simt {

// A wrong call: a fault, and what ncclGetLastError says from then on.
ncclResult_t RefuseNccl(const std::string& why);
// ncclSuccess when a call may be made on the communicator now.
ncclResult_t CheckReady(ncclComm_t comm);
// The calling thread is between ncclGroupStart and ncclGroupEnd.
bool InNcclGroup();

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_NCCL_API_H_
