#include "server/operator_pages.h"

#include <utility>

namespace baton::server {

std::map<std::string, HttpRoute> OperatorPages(const Metrics& metrics,
                                               std::function<std::string()> not_ready) {
  std::map<std::string, HttpRoute> pages;
  pages["/metrics"].handle = [&metrics](const HttpRequest&) {
    return HttpResponse{200, std::string(Metrics::kContentType), metrics.Render()};
  };
  pages["/health"].handle = [](const HttpRequest&) { return HttpResponse{.body = "ok\n"}; };
  pages["/ready"].handle = [not_ready = std::move(not_ready)](const HttpRequest&) {
    const std::string reason = not_ready();
    return reason.empty() ? HttpResponse{.body = "ready\n"}
                          : HttpResponse{.status = 503, .body = reason + "\n"};
  };
  return pages;
}

}  // namespace baton::server
