#include "wire/worker_messages.h"

#include <string>
#include <string_view>

namespace baton::wire {
namespace {

using scheduler::EndKind;
using scheduler::FinishReason;

void ToProto(const scheduler::SampledToken& in, v1::SampledToken* out) {
  out->Clear();
  out->set_token(in.token);
  out->set_logprob(in.logprob);
  for (const scheduler::TokenLogprob& top : in.top_logprobs) {
    v1::SampledLogprob* added = out->add_top_logprobs();
    added->set_token(top.token);
    added->set_logprob(top.logprob);
  }
}

scheduler::SampledToken FromProto(const RequestKey& key, const v1::SampledToken& in) {
  scheduler::SampledToken out;
  out.key = key;
  out.token = in.token();
  out.logprob = in.logprob();
  out.top_logprobs.reserve(static_cast<size_t>(in.top_logprobs_size()));
  for (const v1::SampledLogprob& top : in.top_logprobs()) {
    out.top_logprobs.push_back({top.token(), top.logprob()});
  }
  return out;
}

void ToProto(const scheduler::TokenChunk& in, v1::TokenChunk* out) {
  wire::ToProto(in.key, out->mutable_key());
  out->set_first_index(in.first_index);
  for (const scheduler::SampledToken& token : in.tokens) ToProto(token, out->add_tokens());
  if (in.has_first_token_timings) {
    out->mutable_timings()->set_prefill_wait_ns(in.timings.prefill_wait.nanos());
    out->mutable_timings()->set_prefill_ns(in.timings.prefill.nanos());
    out->mutable_timings()->set_transfer_exposed_ns(in.timings.transfer_exposed.nanos());
    out->set_cached_tokens(in.cached_tokens);
    out->set_decode_form_tokens(in.decode_form_tokens);
  }
}

scheduler::TokenChunk FromProto(const v1::TokenChunk& in) {
  scheduler::TokenChunk out;
  out.key = wire::FromProto(in.key());
  out.first_index = in.first_index();
  out.tokens.reserve(static_cast<size_t>(in.tokens_size()));
  for (const v1::SampledToken& token : in.tokens()) out.tokens.push_back(FromProto(out.key, token));
  out.has_first_token_timings = in.has_timings();
  if (in.has_timings()) {
    out.timings.prefill_wait = Duration::Nanos(in.timings().prefill_wait_ns());
    out.timings.prefill = Duration::Nanos(in.timings().prefill_ns());
    out.timings.transfer_exposed = Duration::Nanos(in.timings().transfer_exposed_ns());
    out.cached_tokens = in.cached_tokens();
    out.decode_form_tokens = in.decode_form_tokens();
  }
  return out;
}

v1::EndKind ToProto(EndKind kind) {
  switch (kind) {
    case EndKind::kFinished:
      return v1::END_KIND_FINISHED;
    case EndKind::kCancelled:
      return v1::END_KIND_CANCELLED;
    case EndKind::kRefused:
      return v1::END_KIND_REFUSED;
    case EndKind::kPreempted:
      return v1::END_KIND_PREEMPTED;
    case EndKind::kRetryable:
      return v1::END_KIND_RETRYABLE;
    case EndKind::kFailed:
      return v1::END_KIND_FAILED;
  }
  return v1::END_KIND_FAILED;
}

EndKind FromProto(v1::EndKind kind) {
  switch (kind) {
    case v1::END_KIND_FINISHED:
      return EndKind::kFinished;
    case v1::END_KIND_CANCELLED:
      return EndKind::kCancelled;
    case v1::END_KIND_REFUSED:
      return EndKind::kRefused;
    case v1::END_KIND_PREEMPTED:
      return EndKind::kPreempted;
    case v1::END_KIND_RETRYABLE:
      return EndKind::kRetryable;
    default:
      return EndKind::kFailed;
  }
}

v1::EndReason ToProto(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return v1::END_REASON_NONE;
    case FinishReason::kStop:
      return v1::END_REASON_STOP;
    case FinishReason::kLength:
      return v1::END_REASON_LENGTH;
    case FinishReason::kCancelled:
      return v1::END_REASON_CANCELLED;
    case FinishReason::kError:
      return v1::END_REASON_ERROR;
  }
  return v1::END_REASON_ERROR;
}

FinishReason FromProto(v1::EndReason reason) {
  switch (reason) {
    case v1::END_REASON_NONE:
      return FinishReason::kNone;
    case v1::END_REASON_STOP:
      return FinishReason::kStop;
    case v1::END_REASON_LENGTH:
      return FinishReason::kLength;
    case v1::END_REASON_CANCELLED:
      return FinishReason::kCancelled;
    default:
      return FinishReason::kError;
  }
}

void ToProto(const scheduler::RequestEnd& in, v1::RequestEnd* out) {
  wire::ToProto(in.key, out->mutable_key());
  out->set_kind(ToProto(in.kind));
  out->set_reason(ToProto(in.reason));
  if (!in.status.ok()) wire::ToProto(in.status, out->mutable_status());
  out->set_prefill_lost(in.prefill_lost);
}

scheduler::RequestEnd FromProto(const v1::RequestEnd& in) {
  scheduler::RequestEnd out;
  out.key = wire::FromProto(in.key());
  out.kind = FromProto(in.kind());
  out.reason = FromProto(in.reason());
  out.status = wire::FromProto(in.status());
  out.prefill_lost = in.prefill_lost();
  return out;
}

void ToProto(const scheduler::DecodeStatus& in, v1::DecodeStatus* out) {
  out->set_credits_granted(in.credits_granted);
  out->set_total_pages(in.total_pages);
  out->set_free_pages(in.free_pages);
  out->set_running(in.running);
  out->set_landing(in.landing);
  out->set_draining(in.draining);
  out->set_starts_received(in.starts_received);
  out->set_caches_prefixes(in.caches_prefixes);
  out->set_cached_pages(in.cached_pages);
}

scheduler::DecodeStatus FromProto(const v1::DecodeStatus& in) {
  scheduler::DecodeStatus out;
  out.credits_granted = in.credits_granted();
  out.total_pages = in.total_pages();
  out.free_pages = in.free_pages();
  out.running = in.running();
  out.landing = in.landing();
  out.draining = in.draining();
  out.starts_received = in.starts_received();
  out.caches_prefixes = in.caches_prefixes();
  out.cached_pages = in.cached_pages();
  return out;
}

template <typename Tokens>
std::vector<TokenId> TokensOf(const Tokens& in) {
  return std::vector<TokenId>(in.begin(), in.end());
}

}  // namespace

void ToProto(const scheduler::WorkerIdentity& in, v1::WorkerIdentity* out) {
  out->Clear();
  out->set_role(in.role);
  out->set_instance(in.instance);
  out->set_incarnation(in.incarnation);
  out->set_model_name(in.model_name);
  out->set_model_hash(in.model_hash);
  out->set_kv_format(in.kv_format);
  out->set_page_tokens(in.page_tokens);
  out->set_layers(in.layers);
  out->set_revision(in.revision);
  out->set_expert_dispatch(in.expert_dispatch);
}

scheduler::WorkerIdentity FromProto(const v1::WorkerIdentity& in) {
  scheduler::WorkerIdentity out;
  out.role = in.role();
  out.instance = in.instance();
  out.incarnation = in.incarnation();
  out.model_name = in.model_name();
  out.model_hash = in.model_hash();
  out.kv_format = in.kv_format();
  out.page_tokens = in.page_tokens();
  out.layers = in.layers();
  out.revision = in.revision();
  out.expert_dispatch = in.expert_dispatch();
  return out;
}

void ToProto(const RequestKey& in, v1::RequestKey* out) {
  out->set_request(in.request.value());
  out->set_attempt(in.attempt);
}

RequestKey FromProto(const v1::RequestKey& in) { return {RequestId(in.request()), in.attempt()}; }

void ToProto(const absl::Status& in, v1::StatusValue* out) {
  out->set_code(static_cast<int32_t>(in.code()));
  out->set_message(in.message().data(), in.message().size());
}

absl::Status FromProto(const v1::StatusValue& in) {
  return absl::Status(static_cast<absl::StatusCode>(in.code()), in.message());
}

void ToProto(const scheduler::SamplingParams& in, v1::SamplingParams* out) {
  out->Clear();
  out->set_temperature(in.temperature);
  out->set_top_k(in.top_k);
  out->set_top_p(in.top_p);
  out->set_min_p(in.min_p);
  out->set_repetition_penalty(in.repetition_penalty);
  out->set_presence_penalty(in.presence_penalty);
  out->set_frequency_penalty(in.frequency_penalty);
  out->set_seed(in.seed);
  out->set_max_tokens(in.max_tokens);
  out->set_min_tokens(in.min_tokens);
  out->set_ignore_eos(in.ignore_eos);
  out->set_top_logprobs(in.top_logprobs);
  out->mutable_stop_token_ids()->Assign(in.stop_token_ids.begin(), in.stop_token_ids.end());
}

scheduler::SamplingParams FromProto(const v1::SamplingParams& in) {
  scheduler::SamplingParams out;
  out.temperature = in.temperature();
  out.top_k = in.top_k();
  out.top_p = in.top_p();
  out.min_p = in.min_p();
  out.repetition_penalty = in.repetition_penalty();
  out.presence_penalty = in.presence_penalty();
  out.frequency_penalty = in.frequency_penalty();
  out.seed = in.seed();
  out.max_tokens = in.max_tokens();
  out.min_tokens = in.min_tokens();
  out.ignore_eos = in.ignore_eos();
  out.top_logprobs = in.top_logprobs();
  out.stop_token_ids = TokensOf(in.stop_token_ids());
  return out;
}

void ToProto(const scheduler::StartRequest& in, v1::StartRequest* out) {
  out->Clear();
  ToProto(in.key, out->mutable_key());
  out->mutable_prompt()->Assign(in.prompt.begin(), in.prompt.end());
  out->mutable_delivered()->Assign(in.delivered.begin(), in.delivered.end());
  ToProto(in.sampling, out->mutable_sampling());
  out->set_remaining_ns(in.remaining.nanos());
  out->set_prefill_address(in.prefill_address);
  out->set_cache_salt(in.cache_salt);
}

scheduler::StartRequest FromProto(const v1::StartRequest& in) {
  scheduler::StartRequest out;
  out.key = FromProto(in.key());
  out.prompt = TokensOf(in.prompt());
  out.delivered = TokensOf(in.delivered());
  out.sampling = FromProto(in.sampling());
  out.remaining = Duration::Nanos(in.remaining_ns());
  out.prefill_address = in.prefill_address();
  out.cache_salt = in.cache_salt();
  return out;
}

void ToProto(const scheduler::DecodeUpdate& in, v1::DecodeUpdate* out) {
  out->Clear();
  for (const scheduler::TokenChunk& chunk : in.chunks) ToProto(chunk, out->add_chunks());
  for (const scheduler::RequestEnd& end : in.ends) ToProto(end, out->add_ends());
  for (const RequestKey& key : in.released) ToProto(key, out->add_released());
  ToProto(in.status, out->mutable_status());
}

scheduler::DecodeUpdate FromProto(const v1::DecodeUpdate& in) {
  scheduler::DecodeUpdate out;
  for (const v1::TokenChunk& chunk : in.chunks()) out.chunks.push_back(FromProto(chunk));
  for (const v1::RequestEnd& end : in.ends()) out.ends.push_back(FromProto(end));
  for (const v1::RequestKey& key : in.released()) out.released.push_back(FromProto(key));
  out.status = FromProto(in.status());
  return out;
}

void ToProto(const scheduler::PrefillCall& in, v1::PrefillCall* out) {
  out->Clear();
  ToProto(in.key, out->mutable_key());
  out->mutable_prompt()->Assign(in.prompt.begin(), in.prompt.end());
  ToProto(in.sampling, out->mutable_sampling());
  out->set_sample_first_token(in.sample_first_token);
  out->set_remaining_ns(in.remaining.nanos());
  v1::Landing* landing = out->mutable_landing();
  landing->set_epoch(in.landing.epoch.value());
  landing->set_transport_address(in.landing.transport_address);
  landing->set_first_page(in.landing.first_page);
  for (PageId page : in.landing.pages) landing->add_pages(page.value());
  out->set_cache_salt(in.cache_salt);
}

scheduler::PrefillCall FromProto(const v1::PrefillCall& in) {
  scheduler::PrefillCall out;
  out.key = FromProto(in.key());
  out.prompt = TokensOf(in.prompt());
  out.sampling = FromProto(in.sampling());
  out.sample_first_token = in.sample_first_token();
  out.remaining = Duration::Nanos(in.remaining_ns());
  out.landing.epoch = Epoch(in.landing().epoch());
  out.landing.transport_address = in.landing().transport_address();
  out.landing.first_page = in.landing().first_page();
  for (uint32_t page : in.landing().pages()) out.landing.pages.push_back(PageId(page));
  out.cache_salt = in.cache_salt();
  return out;
}

void ToProto(const scheduler::PrefillReply& in, v1::PrefillReply* out) {
  out->Clear();
  ToProto(in.key, out->mutable_key());
  if (!in.status.ok()) ToProto(in.status, out->mutable_status());
  if (in.has_first_token) ToProto(in.first_token, out->mutable_first_token());
  out->set_messages_posted(in.messages_posted);
  out->set_bytes_posted(in.bytes_posted);
  out->set_wait_ns(in.wait.nanos());
  out->set_compute_ns(in.compute.nanos());
  out->set_cached_tokens(in.cached_tokens);
}

scheduler::PrefillReply FromProto(const v1::PrefillReply& in) {
  scheduler::PrefillReply out;
  out.key = FromProto(in.key());
  out.status = FromProto(in.status());
  out.has_first_token = in.has_first_token();
  if (in.has_first_token()) out.first_token = FromProto(out.key, in.first_token());
  out.messages_posted = in.messages_posted();
  out.bytes_posted = in.bytes_posted();
  out.wait = Duration::Nanos(in.wait_ns());
  out.compute = Duration::Nanos(in.compute_ns());
  out.cached_tokens = in.cached_tokens();
  return out;
}

void ToProto(const scheduler::PrefillStatus& in, v1::PrefillStatus* out) {
  out->Clear();
  out->set_total_pages(in.total_pages);
  out->set_free_pages(in.free_pages);
  out->set_slots(in.slots);
  out->set_running(in.running);
  out->set_queued_tokens(in.queued_tokens);
  out->set_draining(in.draining);
  out->set_caches_prefixes(in.caches_prefixes);
  out->set_cached_pages(in.cached_pages);
}

scheduler::PrefillStatus FromProto(const v1::PrefillStatus& in) {
  scheduler::PrefillStatus out;
  out.total_pages = in.total_pages();
  out.free_pages = in.free_pages();
  out.slots = in.slots();
  out.running = in.running();
  out.queued_tokens = in.queued_tokens();
  out.draining = in.draining();
  out.caches_prefixes = in.caches_prefixes();
  out.cached_pages = in.cached_pages();
  return out;
}

}  // namespace baton::wire
