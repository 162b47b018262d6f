#include "transport/ucx/ucx_library.h"

#include <ucs/config/global_opts.h>
#include <ucs/debug/debug.h>
#include <ucs/debug/log_def.h>

#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status_macros.h"

namespace baton::transport {
namespace {

// UCX knows one log for the process: lines go to the log of the endpoint that was made last.
struct LogTarget {
  std::mutex mutex;
  Log log;  // guarded by mutex
};

LogTarget& TheLogTarget() {
  static LogTarget* const target = new LogTarget;  // outlives UCX's own threads
  return *target;
}

ucs_log_func_rc_t ForwardUcxMessage(const char*, unsigned, const char*, ucs_log_level_t level,
                                    const ucs_log_component_config_t*, const char* format,
                                    va_list arguments) {
  char line[512];
  va_list copy;
  va_copy(copy, arguments);
  std::vsnprintf(line, sizeof(line), format, copy);
  va_end(copy);
  Log log;
  {
    LogTarget& target = TheLogTarget();
    std::lock_guard<std::mutex> lock(target.mutex);
    log = target.log;
  }
  // A lost peer is reported as an event with its status; to UCX it is an error.
  if (level <= UCS_LOG_LEVEL_FATAL) {
    log.Error(line);
  } else if (level <= UCS_LOG_LEVEL_WARN) {
    log.Warning(line);
  } else {
    log.Debug(line);
  }
  return UCS_LOG_FUNC_RC_STOP;
}

void SetUpProcess(const Log& log) {
  {
    LogTarget& target = TheLogTarget();
    std::lock_guard<std::mutex> lock(target.mutex);
    target.log = log;
  }
  static std::once_flag once;
  std::call_once(once, [] {
    ucs_log_push_handler(&ForwardUcxMessage);
    const bool has_handlers = ucs_global_opts.handle_errors != 0;
    for (unsigned i = 0; has_handlers && i < ucs_global_opts.error_signals.count; ++i) {
      ucs_debug_disable_signal(ucs_global_opts.error_signals.signals[i]);
    }
    // Payloads are host memory and say so: no need to hook the allocator to tell apart GPU memory.
    ucs_global_opts_set_value("MEMTYPE_CACHE", "n");
  });
}

struct ConfigDeleter {
  void operator()(ucp_config_t* config) const { ucp_config_release(config); }
};
using Config = std::unique_ptr<ucp_config_t, ConfigDeleter>;

absl::Status Modify(ucp_config_t* config, const char* name, const std::string& value) {
  const ucs_status_t status = ucp_config_modify(config, name, value.c_str());
  if (status == UCS_OK) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("UCX refuses the value '", value, "' for ", name,
                                                 ": ", ucs_status_string(status)));
}

absl::StatusOr<Config> ReadConfig(const UcxOptions& options) {
  ucp_config_t* raw = nullptr;
  const ucs_status_t status = ucp_config_read(nullptr, nullptr, &raw);
  if (status != UCS_OK) {
    return absl::FailedPreconditionError(
        absl::StrCat("UCX cannot read its configuration: ", ucs_status_string(status),
                     "; check the UCX_* environment variables"));
  }
  Config config(raw);
  BATON_RETURN_IF_ERROR(Modify(raw, "TLS", options.tls));
  BATON_RETURN_IF_ERROR(Modify(raw, "NET_DEVICES", options.net_devices));
  BATON_RETURN_IF_ERROR(
      Modify(raw, "KEEPALIVE_INTERVAL", absl::StrCat(options.keepalive_interval.millis(), "ms")));
  // Connections are agreed on over a TCP socket, whose end tells that the peer has gone.
  BATON_RETURN_IF_ERROR(Modify(raw, "SOCKADDR_TLS_PRIORITY", "tcp"));
  // Memory is registered explicitly. A cache would hook munmap, madvise and others in the process.
  BATON_RETURN_IF_ERROR(Modify(raw, "RCACHE_ENABLE", "n"));
  // A connect that blocks would hold up the loop for as long as the kernel looks for a host that is
  // gone. And where the peer ends right after it has connected to this rank, a blocking connect
  // fails inside of another call, and UCX (seen with 1.13) ends the process by an assertion of its
  // own instead of reporting a lost peer. TCP's option, which UCX wants without its prefix here.
  BATON_RETURN_IF_ERROR(Modify(raw, "CONN_NB", "y"));
  // Shared memory notices a dead peer only when asked to; without it UCX would not use it here.
  BATON_RETURN_IF_ERROR(Modify(raw, "MM_ERROR_HANDLING", "y"));
  return config;
}

}  // namespace

absl::Status UcxStatus(ucs_status_t status, const char* what) {
  if (status == UCS_OK) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", ucs_status_string(status));
  switch (status) {
    case UCS_ERR_UNREACHABLE:
    case UCS_ERR_CONNECTION_RESET:
    case UCS_ERR_ENDPOINT_TIMEOUT:
    case UCS_ERR_REJECTED:
    case UCS_ERR_NOT_CONNECTED:
    case UCS_ERR_CANCELED:
    case UCS_ERR_IO_ERROR:
    case UCS_ERR_TIMED_OUT:
    case UCS_ERR_SHMEM_SEGMENT:
      return absl::UnavailableError(message);
    case UCS_ERR_NO_MEMORY:
    case UCS_ERR_NO_RESOURCE:
      return absl::ResourceExhaustedError(message);
    default:
      return absl::InternalError(message);
  }
}

UcxVersion LoadedUcxVersion() {
  UcxVersion version;
  unsigned release = 0;
  ucp_get_version(&version.major, &version.minor, &release);
  return version;
}

absl::StatusOr<UcxContext> CreateUcxContext(const UcxOptions& options) {
  SetUpProcess(options.log);
  BATON_ASSIGN_OR_RETURN(const Config config, ReadConfig(options));
  ucp_params_t params = {};
  params.field_mask =
      UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED | UCP_PARAM_FIELD_NAME;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;  // the loop thread maps memory, the progress thread sends it
  params.name = "baton";
  ucp_context_h context = nullptr;
  const ucs_status_t status = ucp_init(&params, config.get(), &context);
  if (status != UCS_OK) {
    return absl::FailedPreconditionError(absl::StrCat(
        "UCX cannot start: ", ucs_status_string(status), "; transports (tls) are '", options.tls,
        "', network devices '", options.net_devices,
        "': name ones that this host has ('ip link' shows devices; tls 'sysv,tcp' works "
        "on every Linux host with a network device)"));
  }
  return UcxContext(context);
}

absl::StatusOr<UcxWorker> CreateUcxWorker(ucp_context_h context) {
  ucp_worker_params_t params = {};
  params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  // Made and destroyed on the owner's thread, used on the progress thread: never two at once.
  params.thread_mode = UCS_THREAD_MODE_SERIALIZED;
  ucp_worker_h worker = nullptr;
  const ucs_status_t status = ucp_worker_create(context, &params, &worker);
  if (status != UCS_OK) {
    return absl::FailedPreconditionError(absl::StrCat(
        "UCX cannot open its transports: ", ucs_status_string(status),
        "; check that System V shared memory has 64 MiB free (kernel.shmall, kernel.shmmni and the "
        "container's memory limit) and that the limit of open files is above 1024 (ulimit -n)"));
  }
  return UcxWorker(worker);
}

}  // namespace baton::transport
