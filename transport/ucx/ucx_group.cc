#include "transport/ucx/ucx_group.h"

#include <utility>

#include "transport/ucx/ucx_exchange.h"

namespace baton::transport {
namespace {

class UcxExchangeFactory final : public ExchangeFactory {
 public:
  UcxExchangeFactory(const UcxGroupOptions& options, std::shared_ptr<Clock> clock)
      : clock_(std::move(clock)) {
    ucx_.tls = options.tls;
    ucx_.net_devices = options.net_devices;
    ucx_.keepalive_interval = options.keepalive_interval;
    ucx_.log = options.log;
  }
  absl::StatusOr<std::unique_ptr<FormedExchange>> Create() override {
    return UcxExchange::Create(ucx_, clock_);
  }

 private:
  UcxOptions ucx_;
  const std::shared_ptr<Clock> clock_;
};

}  // namespace

std::unique_ptr<ExchangeFactory> MakeUcxExchangeFactory(const UcxGroupOptions& options,
                                                        std::shared_ptr<Clock> clock) {
  return std::make_unique<UcxExchangeFactory>(options, std::move(clock));
}

absl::StatusOr<std::unique_ptr<UcxRendezvous>> CreateUcxRendezvous(const UcxGroupOptions& options,
                                                                   std::shared_ptr<Clock> clock) {
  return CreateTcpRendezvous(options, MakeUcxExchangeFactory(options, clock), clock);
}

}  // namespace baton::transport
