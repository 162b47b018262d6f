#ifndef BATON_TESTS_TRANSPORT_CHILD_RENDEZVOUS_H_
#define BATON_TESTS_TRANSPORT_CHILD_RENDEZVOUS_H_

// What collectives_child meets its group by, chosen by what it links: child_rendezvous_ucx.cc or
// child_rendezvous_nccl.cc.

#include <memory>

#include "transport/ucx/ucx_group.h"

namespace baton::transport {

std::unique_ptr<Rendezvous> MakeChildRendezvous(const UcxGroupOptions& options);

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_CHILD_RENDEZVOUS_H_
