#ifndef BATON_SERVER_HTTP_SERVER_H_
#define BATON_SERVER_HTTP_SERVER_H_

// The small HTTP/1.1 server of every role: /metrics, /health and /ready today, and the place where
// other HTTP front ends register their paths. One thread runs everything, handlers included, so a
// handler must not block. Connections, header sizes, body sizes and waits are bounded.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/clock.h"

namespace baton::server {

struct HttpRequest {
  std::string method;  // "GET", "HEAD", "POST", ...
  std::string path;    // without the query
  std::string query;   // behind the '?', undecoded
  std::string body;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

struct HttpRoute {
  std::string method = "GET";  // GET also answers HEAD
  std::function<HttpResponse(const HttpRequest&)> handle;
};

struct HttpServerOptions {
  std::string address;            // host:port; port 0: any free one
  int32_t max_connections = 128;  // more are closed at once
  uint32_t max_header_bytes = 16 << 10;
  uint64_t max_body_bytes = uint64_t{1} << 20;
  Duration request_timeout = Duration::Seconds(10);  // first byte to the end of the answer
  Duration idle_timeout = Duration::Seconds(60);     // between requests of one connection
};

class HttpServer {
 public:
  // `routes`: path -> what answers it. INVALID_ARGUMENT for an address that is not host:port,
  // UNAVAILABLE when it cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerOptions& options,
                                                           std::map<std::string, HttpRoute> routes);
  virtual ~HttpServer() = default;  // closes every connection

  virtual int port() const = 0;
};

}  // namespace baton::server

#endif  // BATON_SERVER_HTTP_SERVER_H_
