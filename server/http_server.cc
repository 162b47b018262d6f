#include "server/http_server.h"

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer knows no fences; one thread runs the server, which needs none.
#define BOOST_ASIO_DISABLE_FENCED_BLOCK
#endif

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <optional>
#include <string_view>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/host_port.h"
#include "base/thread.h"

namespace baton::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;

// Errors are values in here: Boost would otherwise throw them through the coroutines.
constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);

std::chrono::nanoseconds Nanos(Duration duration) {
  return std::chrono::nanoseconds(duration.nanos());
}

std::string_view View(beast::string_view text) { return {text.data(), text.size()}; }

using Response = http::response<http::string_body>;

class HttpServerImpl final : public HttpServer {
 public:
  HttpServerImpl(const HttpServerOptions& options, std::map<std::string, HttpRoute> routes)
      : options_(options), routes_(std::move(routes)), acceptor_(io_) {}

  ~HttpServerImpl() override {
    io_.stop();
    thread_.reset();
  }

  absl::Status Listen() {
    std::optional<HostPort> parsed = SplitHostPort(options_.address);
    if (!parsed.has_value() || parsed->port.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("HTTP address is \"", options_.address,
                                                     "\", must be host:port, like 0.0.0.0:8080"));
    }
    if (parsed->host.empty()) parsed->host = "0.0.0.0";
    boost::system::error_code error;
    tcp::resolver resolver(io_);
    const auto found = resolver.resolve(parsed->host, parsed->port, tcp::resolver::passive, error);
    if (!error && found.begin() != found.end()) {
      const tcp::endpoint endpoint = found.begin()->endpoint();
      acceptor_.open(endpoint.protocol(), error);
      if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
      if (!error) acceptor_.bind(endpoint, error);
      if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
    }
    if (error || found.begin() == found.end()) {
      return absl::UnavailableError(absl::StrCat("cannot listen for HTTP on ", options_.address,
                                                 ": ", error.message(),
                                                 "; choose another port, or port 0 for any"));
    }
    port_ = acceptor_.local_endpoint(error).port();
    asio::co_spawn(io_, Accept(), asio::detached);
    thread_.emplace("http", [this] { io_.run(); });
    return absl::OkStatus();
  }

  int port() const override { return port_; }

 private:
  asio::awaitable<void> Accept() {
    while (acceptor_.is_open()) {
      auto [error, socket] = co_await acceptor_.async_accept(kAwait);
      if (error) {
        // Out of file descriptors or the like: wait a little, others may close theirs.
        asio::steady_timer pause(io_, std::chrono::milliseconds(100));
        co_await pause.async_wait(kAwait);
        continue;
      }
      if (connections_ >= options_.max_connections) continue;  // closes the socket
      asio::co_spawn(io_, Serve(beast::tcp_stream(std::move(socket))), asio::detached);
    }
  }

  asio::awaitable<void> Serve(beast::tcp_stream stream) {
    ++connections_;
    beast::flat_buffer buffer(options_.max_header_bytes + options_.max_body_bytes);
    bool keep = true;
    while (keep) keep = co_await ServeOne(stream, buffer);
    boost::system::error_code ignored;
    stream.socket().shutdown(tcp::socket::shutdown_send, ignored);
    --connections_;
  }

  // One request and its answer. False: close the connection.
  asio::awaitable<bool> ServeOne(beast::tcp_stream& stream, beast::flat_buffer& buffer) {
    http::request_parser<http::string_body> parser;
    parser.header_limit(options_.max_header_bytes);
    parser.body_limit(options_.max_body_bytes);
    if (buffer.size() == 0) {  // nothing of the next request is here yet
      stream.expires_after(Nanos(options_.idle_timeout));
      auto [error, bytes] = co_await stream.async_read_some(buffer.prepare(4096), kAwait);
      if (error) co_return false;
      buffer.commit(bytes);
    }
    stream.expires_after(Nanos(options_.request_timeout));
    auto [error, bytes] = co_await http::async_read(stream, buffer, parser, kAwait);
    Response response;
    bool keep = false;
    if (error) {
      if (!IsProtocolError(error)) co_return false;  // timed out or closed
      response = MakeResponse({StatusOf(error), "text/plain; charset=utf-8",
                               absl::StrCat("bad request: ", error.message(), "\n")});
    } else {
      keep = parser.get().keep_alive();
      response = Answer(parser.get());
    }
    response.version(11);
    response.keep_alive(keep);
    response.prepare_payload();
    if (!error && parser.get().method() == http::verb::head) response.body().clear();
    auto [write_error, written] = co_await http::async_write(stream, response, kAwait);
    co_return keep && !write_error;
  }

  static bool IsProtocolError(const boost::system::error_code& error) {
    return error.category() == http::make_error_code(http::error::bad_method).category() &&
           error != http::error::end_of_stream && error != http::error::partial_message;
  }

  static int StatusOf(const boost::system::error_code& error) {
    if (error == http::error::header_limit) return 431;
    if (error == http::error::body_limit) return 413;
    return 400;
  }

  static Response MakeResponse(HttpResponse from) {
    Response response;
    response.result(static_cast<unsigned>(from.status));
    response.set(http::field::content_type, from.content_type);
    response.set(http::field::cache_control, "no-store");
    response.body() = std::move(from.body);
    return response;
  }

  Response Answer(http::request<http::string_body>& request) {
    const std::string_view target = View(request.target());
    const size_t mark = target.find('?');
    HttpRequest plain;
    plain.method = std::string(View(request.method_string()));
    plain.path = std::string(target.substr(0, mark));
    if (mark != std::string_view::npos) plain.query = std::string(target.substr(mark + 1));
    plain.body = std::move(request.body());
    const auto found = routes_.find(plain.path);
    if (found == routes_.end()) {
      std::string paths;
      for (const auto& [path, route] : routes_) absl::StrAppend(&paths, " ", path);
      return MakeResponse({404, "text/plain; charset=utf-8",
                           absl::StrCat("no such page; there are:", paths, "\n")});
    }
    const std::string& allowed = found->second.method;
    if (plain.method != allowed && !(allowed == "GET" && plain.method == "HEAD")) {
      Response response = MakeResponse(
          {405, "text/plain; charset=utf-8", absl::StrCat("use ", allowed, " here\n")});
      response.set(http::field::allow, allowed == "GET" ? "GET, HEAD" : allowed);
      return response;
    }
    return MakeResponse(found->second.handle(plain));
  }

  const HttpServerOptions options_;
  const std::map<std::string, HttpRoute> routes_;
  asio::io_context io_{1};
  tcp::acceptor acceptor_;
  int port_ = 0;
  int32_t connections_ = 0;  // touched by the server's thread only
  std::optional<Thread> thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const HttpServerOptions& options, std::map<std::string, HttpRoute> routes) {
  auto server = std::make_unique<HttpServerImpl>(options, std::move(routes));
  absl::Status listening = server->Listen();
  if (!listening.ok()) return listening;
  return server;
}

}  // namespace baton::server
