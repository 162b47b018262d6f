// The engine's sends and receives; see ucx_engine.h for their states.

#include <cstring>
#include <utility>

#include "transport/region_table.h"
#include "transport/ucx/ucx_engine.h"

namespace baton::transport {
namespace {

// Stands for an empty payload.
constexpr std::byte kNothing[1] = {};

size_t WireBytes(size_t payload_bytes) { return payload_bytes == 0 ? 1 : payload_bytes; }

}  // namespace

void UcxEngine::StartSend(UcxCommand command) {
  Transfer& transfer = transfers_.at(command.transfer);
  const bool is_notify = command.kind == UcxCommand::Kind::kNotify;
  if (!transfer.peer->failure.ok()) {
    if (is_notify) --notifies_in_flight_;
    return;
  }
  ++transfer.sends;
  Send& send = sends_.emplace_back();
  send.engine = this;
  send.command = std::move(command);
  send.peer = transfer.peer;
  send.started = clock_->Now();
  send.self = std::prev(sends_.end());

  ucp_request_param_t param = {};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.cb.send = &OnSent;
  param.user_data = &send;
  param.memory_type = UCS_MEMORY_TYPE_HOST;
  param.flags = UCP_AM_SEND_FLAG_RNDV;
  if (send.command.memory != nullptr) {
    param.op_attr_mask |= UCP_OP_ATTR_FIELD_MEMH;
    param.memh = send.command.memory;
  }
  std::span<const std::byte> payload = send.command.payload;
  if (is_notify) payload = std::as_bytes(std::span(send.command.bytes));
  send.notify_header = static_cast<uint32_t>(payload.size());
  const void* bytes = payload.empty() ? kNothing : payload.data();
  ucs_status_ptr_t request =
      is_notify
          ? ucp_am_send_nbx(send.peer->endpoint, kUcxNotifyId, &send.notify_header,
                            sizeof(send.notify_header), bytes, WireBytes(payload.size()), &param)
          : ucp_am_send_nbx(send.peer->endpoint, kUcxDataId, &send.command.header,
                            sizeof(KvMessageHeader), bytes, WireBytes(payload.size()), &param);
  // Without a request it is over, and the callback is not called.
  if (!UCS_PTR_IS_PTR(request)) FinishSend(&send, UCS_PTR_STATUS(request));
}

void UcxEngine::OnSent(void* request, ucs_status_t status, void* user_data) {
  ucp_request_free(request);
  Send* send = static_cast<Send*>(user_data);
  send->engine->FinishSend(send, status);
}

void UcxEngine::FinishSend(Send* send, ucs_status_t status) {
  const TransferId id = send->command.transfer;
  const bool is_notify = send->command.kind == UcxCommand::Kind::kNotify;
  if (is_notify) --notifies_in_flight_;
  if (status != UCS_OK) {
    FailPeer(send->peer.get(), UcxStatus(status, "sending to the peer failed"));
  } else {
    send->peer->last_sent = clock_->Now();
    send->peer->is_connected = true;
    if (!is_notify) {
      Emit({.kind = KvEventKind::kSent, .transfer = id, .post_id = send->command.post_id});
    }
  }
  sends_.erase(send->self);
  --transfers_.at(id).sends;
  Settle(id);
}

// Fetches what peers have announced, oldest first, as far as staging has room.
void UcxEngine::StartReceives() {
  while (!announced_.empty()) {
    const size_t bytes = announced_.front().wire_bytes;
    StagingBuffer buffer = staging_.TryAcquire(bytes);
    if (!buffer && !starved_) {
      // Room that was freed before the mark was set is seen now; later room wakes this thread.
      starved_ = true;
      buffer = staging_.TryAcquire(bytes);
      wake_owner_ = !buffer;
    }
    if (!buffer) return;
    const Announced message = announced_.front();
    announced_.pop_front();
    StartReceive(message, std::move(buffer));
  }
  starved_ = false;
}

void UcxEngine::StartReceive(const Announced& message, StagingBuffer buffer) {
  Receive& receive = receives_.emplace_back();
  receive.engine = this;
  receive.message = message;
  receive.buffer = std::move(buffer);
  receive.self = std::prev(receives_.end());
  ucp_request_param_t param = {};
  param.op_attr_mask =
      UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA | UCP_OP_ATTR_FIELD_MEMORY_TYPE;
  param.cb.recv_am = &OnReceived;
  param.user_data = &receive;
  param.memory_type = UCS_MEMORY_TYPE_HOST;
  const std::span<std::byte> into = receive.buffer.bytes();
  ucs_status_ptr_t request =
      ucp_am_recv_data_nbx(worker_.get(), message.descriptor, into.data(), into.size(), &param);
  if (!UCS_PTR_IS_PTR(request)) FinishReceive(&receive, UCS_PTR_STATUS(request));
}

void UcxEngine::OnReceived(void* request, ucs_status_t status, size_t, void* user_data) {
  ucp_request_free(request);
  Receive* receive = static_cast<Receive*>(user_data);
  receive->engine->FinishReceive(receive, status);
}

void UcxEngine::FinishReceive(Receive* receive, ucs_status_t status) {
  if (status == UCS_OK) {
    const Announced& message = receive->message;
    KvEvent event{.kind = message.kind,
                  .payload = receive->buffer.bytes().first(message.header.payload_bytes)};
    if (message.kind == KvEventKind::kReceived) event.header = message.header;
    fresh_.push_back({std::move(event), std::move(receive->buffer)});
  } else {
    ++failed_receives_;
  }
  receives_.erase(receive->self);
}

// UCS_INPROGRESS keeps the message; UCS_OK drops it, and its sender goes on as if it was taken.
ucs_status_t UcxEngine::Announce(const Announced& message, const ucp_am_recv_param_t* param) {
  const uint64_t limit =
      message.kind == KvEventKind::kNotified ? kMaxNotifyBytes : options_.max_message_bytes;
  const uint64_t payload_bytes = message.header.payload_bytes;
  if ((param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) == 0 || payload_bytes > limit ||
      message.wire_bytes != WireBytes(payload_bytes)) {
    ++malformed_messages_;
    return UCS_OK;
  }
  if (announced_.size() >= options_.max_waiting_messages) {
    ++dropped_messages_;
    return UCS_OK;
  }
  announced_.push_back(message);
  return UCS_INPROGRESS;
}

ucs_status_t UcxEngine::OnData(void* argument, const void* header, size_t header_length, void* data,
                               size_t length, const ucp_am_recv_param_t* param) {
  UcxEngine* engine = static_cast<UcxEngine*>(argument);
  Announced message{.kind = KvEventKind::kReceived, .wire_bytes = length, .descriptor = data};
  if (header == nullptr || header_length != sizeof(message.header)) {
    ++engine->malformed_messages_;
    return UCS_OK;
  }
  std::memcpy(&message.header, header, sizeof(message.header));
  return engine->Announce(message, param);
}

ucs_status_t UcxEngine::OnNotify(void* argument, const void* header, size_t header_length,
                                 void* data, size_t length, const ucp_am_recv_param_t* param) {
  UcxEngine* engine = static_cast<UcxEngine*>(argument);
  Announced message{.kind = KvEventKind::kNotified, .wire_bytes = length, .descriptor = data};
  uint32_t payload_bytes = 0;
  if (header == nullptr || header_length != sizeof(payload_bytes)) {
    ++engine->malformed_messages_;
    return UCS_OK;
  }
  std::memcpy(&payload_bytes, header, sizeof(payload_bytes));
  message.header.payload_bytes = payload_bytes;
  return engine->Announce(message, param);
}

ucs_status_t UcxEngine::OnUnknown(void* argument, const void*, size_t, void*, size_t,
                                  const ucp_am_recv_param_t*) {
  ++static_cast<UcxEngine*>(argument)->malformed_messages_;
  return UCS_OK;
}

}  // namespace baton::transport
