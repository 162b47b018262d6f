// For ThreadSanitizer builds only: tells it what gRPC promises.
//
// Debian's gRPC is not instrumented. ThreadSanitizer does not see that the end of an operation
// comes after its start, nor that a reaction which gRPC hands to another thread comes after those
// before it, and so takes whatever two of gRPC's threads do one after the other for a race. Here
// the few functions by which gRPC starts, ends and hands over are wrapped (a program's definitions
// come before those of its shared libraries) with the releases and acquires that they imply:
//
//   starting an operation             releases its tag
//   the operation's end               acquires it
//   handing work to another thread    releases its argument; running it acquires it
//   a cancelled call's reaction       releases what counts the call's reactions
//   the call's last reaction          acquires it
//   the end of a call                 releases what the end of a server acquires
//   the start of a server             releases what the beginning of a call acquires
//
// That is all: threads that use the same data without one of these between them still race. This
// file itself is built without ThreadSanitizer, so that its own atomics order nothing. It knows
// layouts of gRPC 1.51.

#include <dlfcn.h>
#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/server_callback.h>
#include <link.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "base/check.h"

static_assert(GRPC_CPP_VERSION_MAJOR == 1 && GRPC_CPP_VERSION_MINOR == 51);

extern "C" {
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}

// Core's unit of work (src/core/lib/iomgr/closure.h) and what runs it (executor.h).
struct grpc_closure {
  void* next;
  void (*run)(void* argument, absl::Status error);
  void* argument;
};
namespace grpc_core {
enum class ExecutorType : int;
enum class ExecutorJobType : int;
class Executor {
 public:
  static void Run(grpc_closure* closure, absl::Status error, ExecutorType executor,
                  ExecutorJobType job);
};
}  // namespace grpc_core

namespace {

template <typename Function>
Function Next(const char* name) {
  const auto next = reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
  BATON_CHECK_MSG(next != nullptr, name);
  return next;
}

// For each of the functions of one type that come along (a handful), a function of the same type
// that acquires its first argument and then calls it.
template <typename First, typename Second>
class Acquiring {
 public:
  using Function = void (*)(First*, Second);

  // `function` itself when it is one of these.
  static Function Wrap(Function function) {
    for (size_t i = 0; i < kCount; ++i) {
      if (function == kWrappers[i]) return function;
      Function known = wrapped_[i].load(std::memory_order_acquire);
      if (known == nullptr && wrapped_[i].compare_exchange_strong(known, function)) {
        known = function;
      }
      if (known == function) return kWrappers[i];
    }
    BATON_CHECK_MSG(false, "more different functions than kCount");
    return function;
  }

 private:
  static constexpr size_t kCount = 64;
  template <size_t kIndex>
  static void Call(First* first, Second second) {
    __tsan_acquire(first);
    wrapped_[kIndex].load(std::memory_order_acquire)(first, std::move(second));
  }
  template <size_t... kIndices>
  static constexpr std::array<Function, kCount> Wrappers(std::index_sequence<kIndices...>) {
    return {Call<kIndices>...};
  }
  static constexpr std::array<Function, kCount> kWrappers =
      Wrappers(std::make_index_sequence<kCount>());
  static inline std::array<std::atomic<Function>, kCount> wrapped_;
};

// Whether `address` is code of this process's modules.
bool IsCode(uintptr_t address) {
  const auto in_module = [](dl_phdr_info* info, size_t, void* data) {
    const uintptr_t wanted = *static_cast<uintptr_t*>(data);
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr)& part = info->dlpi_phdr[i];
      const uintptr_t begin = info->dlpi_addr + part.p_vaddr;
      if (part.p_type == PT_LOAD && (part.p_flags & PF_X) != 0 && wanted >= begin &&
          wanted < begin + part.p_memsz) {
        return 1;
      }
    }
    return 0;
  };
  return dl_iterate_phdr(in_module, &address) != 0;
}

// A tag is a functor, which begins with the function to run, or (for a queue that somebody polls)
// an object that begins with the address of its virtual table.
void WrapFunctor(void* tag) {
  using Functor = grpc_completion_queue_functor;
  uintptr_t first = 0;
  std::memcpy(&first, tag, sizeof first);
  if (!IsCode(first)) return;
  auto* functor = static_cast<Functor*>(tag);
  functor->functor_run = Acquiring<Functor, int>::Wrap(functor->functor_run);
}

// Only their addresses are of interest.
char started_servers;
char ended_calls;

grpc_event Acquired(const grpc_event& event) {
  if (event.type == GRPC_OP_COMPLETE) __tsan_acquire(event.tag);
  return event;
}

// The two counters of a call stand behind the address of its virtual table.
std::array<char*, 2> CountersOf(grpc::internal::ServerCallbackCall* call) {
  char* const first = reinterpret_cast<char*>(call) + sizeof(void*);
  return {first, first + sizeof(std::atomic_int)};
}

}  // namespace

extern "C" {

grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* ops, size_t count, void* tag,
                                      void* reserved) {
  static const auto next = Next<decltype(&grpc_call_start_batch)>("grpc_call_start_batch");
  WrapFunctor(tag);
  __tsan_release(tag);
  return next(call, ops, count, tag, reserved);
}

// A server's services were made by then.
void grpc_server_start(grpc_server* server) {
  static const auto next = Next<decltype(&grpc_server_start)>("grpc_server_start");
  __tsan_release(&started_servers);
  next(server);
}

// What a server does first for a new call, before it asks the service.
void* grpc_call_arena_alloc(grpc_call* call, size_t size) {
  static const auto next = Next<decltype(&grpc_call_arena_alloc)>("grpc_call_arena_alloc");
  __tsan_acquire(&started_servers);
  return next(call, size);
}

// A call's last reaction is over by then.
void grpc_call_unref(grpc_call* call) {
  static const auto next = Next<decltype(&grpc_call_unref)>("grpc_call_unref");
  __tsan_release(&ended_calls);
  next(call);
}

// A server is not destroyed before its calls have ended.
void grpc_server_destroy(grpc_server* server) {
  static const auto next = Next<decltype(&grpc_server_destroy)>("grpc_server_destroy");
  next(server);
  __tsan_acquire(&ended_calls);
}

grpc_event grpc_completion_queue_next(grpc_completion_queue* queue, gpr_timespec deadline,
                                      void* reserved) {
  static const auto next =
      Next<decltype(&grpc_completion_queue_next)>("grpc_completion_queue_next");
  return Acquired(next(queue, deadline, reserved));
}

grpc_event grpc_completion_queue_pluck(grpc_completion_queue* queue, void* tag,
                                       gpr_timespec deadline, void* reserved) {
  static const auto next =
      Next<decltype(&grpc_completion_queue_pluck)>("grpc_completion_queue_pluck");
  return Acquired(next(queue, tag, deadline, reserved));
}

}  // extern "C"

namespace grpc_core {

void Executor::Run(grpc_closure* closure, absl::Status error, ExecutorType executor,
                   ExecutorJobType job) {
  static const auto next =
      Next<void (*)(grpc_closure*, absl::Status, ExecutorType, ExecutorJobType)>(
          "_ZN9grpc_core8Executor3RunEP12grpc_closureN4absl7debian36StatusENS_12ExecutorTypeE"
          "NS_15ExecutorJobTypeE");
  closure->run = Acquiring<void, absl::Status>::Wrap(closure->run);
  __tsan_release(closure->argument);
  next(closure, std::move(error), executor, job);
}

}  // namespace grpc_core

namespace grpc::internal {

void ServerCallbackCall::ScheduleOnDone(bool inline_ondone) {
  static const auto next = Next<void (*)(ServerCallbackCall*, bool)>(
      "_ZN4grpc8internal18ServerCallbackCall14ScheduleOnDoneEb");
  for (char* const counter : CountersOf(this)) __tsan_acquire(counter);
  next(this, inline_ondone);
}

// gRPC itself would hand this to another thread. Its callers hold no lock of ours.
void ServerCallbackCall::CallOnCancel(ServerReactor* reactor) {
  for (char* const counter : CountersOf(this)) __tsan_acquire(counter);
  reactor->OnCancel();
  for (char* const counter : CountersOf(this)) __tsan_release(counter);
}

}  // namespace grpc::internal
