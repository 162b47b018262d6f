#ifndef BATON_SERVER_OPERATOR_PAGES_H_
#define BATON_SERVER_OPERATOR_PAGES_H_

// The HTTP pages that every role has:
//   /metrics  Prometheus' text format
//   /health   200 "ok" while the process lives (liveness)
//   /ready    200 "ready", or 503 with the reason while it takes no work (readiness)

#include <functional>
#include <map>
#include <string>

#include "base/metrics.h"
#include "server/http_server.h"

namespace baton::server {

// `not_ready` gives the reason, empty when ready; called on the HTTP server's thread. `metrics`
// must outlive the server.
std::map<std::string, HttpRoute> OperatorPages(const Metrics& metrics,
                                               std::function<std::string()> not_ready);

}  // namespace baton::server

#endif  // BATON_SERVER_OPERATOR_PAGES_H_
