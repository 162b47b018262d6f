#ifndef BATON_TESTS_TRANSPORT_CHILD_TRANSPORT_H_
#define BATON_TESTS_TRANSPORT_CHILD_TRANSPORT_H_

// The endpoint of transport_child, chosen by what it links: child_transport_ucx.cc or
// child_transport_nccl.cc.

#include <memory>
#include <string>

#include "transport/kv_transport.h"

namespace baton::transport {

std::unique_ptr<KvTransport> MakeChildTransport(const std::string& argument);

}  // namespace baton::transport

#endif  // BATON_TESTS_TRANSPORT_CHILD_TRANSPORT_H_
