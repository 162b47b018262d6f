# The router's loop, apart from the services so that the simulation builds without gRPC.
baton_library(baton_frontend SRCS frontend_loop.cc DEPS baton_base baton_scheduler)
