#ifndef BATON_WIRE_WORKER_H_
#define BATON_WIRE_WORKER_H_

// What a prefill and a decode worker are to the process that runs them: a service for its gRPC
// server, and a way to end. Any thread may call.

#include <string>

namespace grpc {
class Service;
}  // namespace grpc

namespace baton::wire {

class Worker {
 public:
  // Ends the loop (after the step that it is in). The gRPC server must be shut down by now.
  virtual ~Worker() = default;

  // For a gRPC server that is shut down before the worker goes.
  virtual grpc::Service* service() = 0;

  // Gives the worker its name, host:port, once the port is known; until then peers are told to come
  // again. Not needed when its identity has an instance.
  virtual void Announce(const std::string& instance) = 0;

  // No new work; what runs may finish.
  virtual void Drain() = 0;
  virtual bool draining() const = 0;
  // After Drain: nothing holds pages any more and everything was said to the peers.
  virtual bool drained() const = 0;

  // Ends all streams once what is queued on them was written, so that the gRPC server can shut
  // down.
  virtual void CloseStreams() = 0;
};

}  // namespace baton::wire

#endif  // BATON_WIRE_WORKER_H_
