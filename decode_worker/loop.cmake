# The decode rank's loop, apart from its services so that the simulation builds without gRPC. It sees
# the runner and the transport as interfaces only (headers).
baton_library(baton_decode_worker_loop
  SRCS landing.cc loop.cc
  DEPS baton_base baton_scheduler)
# A rank's membership in an expert-parallel group; sees the runner as an interface only.
baton_library(baton_decode_worker_experts
  SRCS expert_copier.cc expert_group.cc expert_group_form.cc expert_group_messages.cc expert_messages.cc
       expert_standing.cc placement_thread.cc step_exchange.cc
  DEPS baton_base baton_scheduler baton_transport)
