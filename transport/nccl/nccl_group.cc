#include "transport/nccl/nccl_group.h"

#include <utility>

#include "base/status_macros.h"
#include "transport/nccl/nccl_exchange.h"

namespace baton::transport {
namespace {

class NcclExchangeFactory final : public ExchangeFactory {
 public:
  NcclExchangeFactory(const NcclGroupOptions& options, std::shared_ptr<Clock> clock)
      : options_(options),
        agreements_(MakeUcxExchangeFactory(options.hosts, clock)),
        clock_(std::move(clock)) {}
  absl::StatusOr<std::unique_ptr<FormedExchange>> Create() override {
    BATON_ASSIGN_OR_RETURN(std::unique_ptr<FormedExchange> agreement, agreements_->Create());
    return NcclExchange::Create(options_, std::move(agreement), clock_);
  }

 private:
  const NcclGroupOptions options_;
  const std::unique_ptr<ExchangeFactory> agreements_;
  const std::shared_ptr<Clock> clock_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TcpRendezvous>> CreateNcclRendezvous(const NcclGroupOptions& options,
                                                                    std::shared_ptr<Clock> clock) {
  return CreateTcpRendezvous(options.hosts, std::make_unique<NcclExchangeFactory>(options, clock),
                             clock);
}

}  // namespace baton::transport
