#include "server/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>
#include <utility>

#include "base/metrics.h"
#include "server/operator_pages.h"

namespace baton::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class Connection {
 public:
  explicit Connection(int port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  }
  ~Connection() { ::close(socket_); }
  Connection(const Connection&) = delete;

  void Send(const std::string& bytes) {
    size_t sent = 0;
    while (sent < bytes.size()) {
      const ssize_t n = ::send(socket_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;  // closed by the server: what it said can still be read
      sent += static_cast<size_t>(n);
    }
  }
  // Until the server closes.
  std::string ReadAll() {
    std::string all;
    char buffer[4096];
    ssize_t n;
    while ((n = ::recv(socket_, buffer, sizeof buffer, 0)) > 0) {
      all.append(buffer, static_cast<size_t>(n));
    }
    return all;
  }
  // Until `end` has come.
  std::string ReadUntil(const std::string& end) {
    std::string all;
    char byte;
    while (all.find(end) == std::string::npos && ::recv(socket_, &byte, 1, 0) == 1) all += byte;
    return all;
  }

 private:
  int socket_;
};

class HttpServerTest : public ::testing::Test {
 protected:
  HttpServerTest() : metrics_({.version = "0", .revision = "r", .model_name = "m"}) {
    metrics_.router();
    Start({});
  }

  void Start(HttpServerOptions options) {
    options.address = "127.0.0.1:0";
    auto pages = OperatorPages(metrics_, [this] { return not_ready_; });
    pages["/echo"] = {"POST", [](const HttpRequest& request) {
                        return HttpResponse{.body = request.query + "|" + request.body};
                      }};
    absl::StatusOr<std::unique_ptr<HttpServer>> server =
        HttpServer::Start(options, std::move(pages));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }

  // One request on a connection of its own.
  std::string Ask(const std::string& bytes) {
    Connection connection(server_->port());
    connection.Send(bytes);
    return connection.ReadAll();
  }
  std::string Get(const std::string& target) {
    return Ask("GET " + target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  }

  Metrics metrics_;
  std::string not_ready_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, ServesTheOperatorsPages) {
  EXPECT_THAT(Get("/health"), HasSubstr("200 OK"));
  EXPECT_THAT(Get("/ready"), HasSubstr("200 OK"));
  const std::string metrics = Get("/metrics");
  EXPECT_THAT(metrics, HasSubstr("Content-Type: text/plain; version=0.0.4"));
  EXPECT_THAT(metrics, HasSubstr("baton_ttft_seconds_count 0"));
  not_ready_ = "draining";
  const std::string ready = Get("/ready");
  EXPECT_THAT(ready, HasSubstr("503 Service Unavailable"));
  EXPECT_THAT(ready, HasSubstr("draining"));
  EXPECT_THAT(Get("/health"), HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, UnknownPagesAndMethods) {
  const std::string missing = Get("/nowhere");
  EXPECT_THAT(missing, HasSubstr("404 Not Found"));
  EXPECT_THAT(missing, HasSubstr("/metrics"));
  const std::string wrong = Ask("DELETE /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(wrong, HasSubstr("405 Method Not Allowed"));
  EXPECT_THAT(wrong, HasSubstr("Allow: GET, HEAD"));
}

TEST_F(HttpServerTest, HeadHasNoBody) {
  const std::string head = Ask("HEAD /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(head, HasSubstr("200 OK"));
  EXPECT_THAT(head, HasSubstr("Content-Length: 3"));
  EXPECT_EQ(head.find("ok\n"), std::string::npos);
}

TEST_F(HttpServerTest, QueryAndBodyReachTheHandler) {
  EXPECT_THAT(Ask("POST /echo?a=1 HTTP/1.1\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody"),
              HasSubstr("a=1|body"));
}

TEST_F(HttpServerTest, ConnectionsAreKept) {
  Connection connection(server_->port());
  for (int i = 0; i < 3; ++i) {
    connection.Send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_THAT(connection.ReadUntil("ok\n"), StartsWith("HTTP/1.1 200 OK"));
  }
  // Two at once, in one packet.
  connection.Send("GET /health HTTP/1.1\r\n\r\nGET /ready HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(connection.ReadUntil("ok\n"), HasSubstr("200 OK"));
  EXPECT_THAT(connection.ReadAll(), HasSubstr("ready\n"));
}

TEST_F(HttpServerTest, MalformedRequestsGetAnAnswerAndTheDoor) {
  EXPECT_THAT(Ask("nonsense\r\n\r\n"), HasSubstr("400 Bad Request"));
  EXPECT_THAT(Ask("GET / HTTP/9.9\r\n\r\n"), HasSubstr("400 Bad Request"));
  EXPECT_THAT(Ask(std::string("GET /\0 HTTP/1.1\r\n\r\n", 19)), HasSubstr("400 Bad Request"));
  EXPECT_THAT(Ask("GET /health HTTP/1.1\r\nX: " + std::string(20'000, 'x') + "\r\n\r\n"),
              HasSubstr("431 Request Header Fields Too Large"));
  EXPECT_THAT(Ask("POST /echo HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"),
              HasSubstr("413 Payload Too Large"));
  EXPECT_THAT(Get("/health"), HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, SlowClientsAreCutOff) {
  Start({.request_timeout = Duration::Millis(50), .idle_timeout = Duration::Millis(50)});
  Connection half(server_->port());
  half.Send("GET /health HT");
  EXPECT_EQ(half.ReadAll(), "");
  Connection silent(server_->port());
  EXPECT_EQ(silent.ReadAll(), "");
  EXPECT_THAT(Get("/health"), HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, ConnectionsAreBounded) {
  Start({.max_connections = 2});
  Connection one(server_->port()), two(server_->port());
  for (Connection* open : {&one, &two}) {
    open->Send("GET /health HTTP/1.1\r\n\r\n");
    EXPECT_THAT(open->ReadUntil("ok\n"), HasSubstr("200 OK"));
  }
  EXPECT_EQ(Get("/health"), "");
  one.Send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(one.ReadAll(), HasSubstr("200 OK"));
  std::string answer;
  for (int i = 0; i < 1000 && answer.empty(); ++i) answer = Get("/health");
  EXPECT_THAT(answer, HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, AddressesThatCannotBeUsedAreErrors) {
  EXPECT_EQ(HttpServer::Start({.address = "nowhere"}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  const std::string taken = "127.0.0.1:" + std::to_string(server_->port());
  EXPECT_EQ(HttpServer::Start({.address = taken}, {}).status().code(),
            absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace baton::server
