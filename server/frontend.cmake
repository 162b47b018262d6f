# The router's loop, apart from the services so that the simulation builds without gRPC.
baton_library(baton_frontend DEPS baton_base baton_scheduler)
