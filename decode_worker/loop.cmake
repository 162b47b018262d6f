# The decode rank's loop, apart from its services so that the simulation builds without gRPC. It sees
# the runner and the transport as interfaces only (headers).
baton_library(baton_decode_worker_loop
  SRCS landing.cc loop.cc
  DEPS baton_base baton_scheduler)
