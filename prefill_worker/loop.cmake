# The prefill worker's loop, apart from its services so that the simulation builds without gRPC. It
# sees the runner and the transport as interfaces only (headers), and takes transport's ring of
# payload memory.
baton_library(baton_prefill_worker_loop
  SRCS follower.cc group_follower.cc group_leader.cc group_link.cc group_messages.cc handoff_sender.cc loop.cc
  DEPS baton_base baton_scheduler baton_transport)
