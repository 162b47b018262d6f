#ifndef BATON_TESTS_E2E_PROCESS_H_
#define BATON_TESTS_E2E_PROCESS_H_

// The `baton` command as child processes, for tests: started with port 0, found by their port
// files, killed at the end of the test whatever happens.

#include <sys/types.h>

#include <string>
#include <vector>

#include "tests/free_port.h"
#include "tests/sanitized.h"

namespace baton::e2e {

// A directory that goes with its object.
class ScratchDirectory {
 public:
  ScratchDirectory();
  ~ScratchDirectory();
  std::string File(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline constexpr char kBaton[] = "baton";                   // the build's
inline constexpr char kBatonEmulated[] = "baton_emulated";  // with an emulated GPU

class BatonProcess {
 public:
  // Runs `baton arguments...`, or another `program` of the build; standard error goes to a file in
  // `scratch`. `name` tells the processes of a test apart.
  BatonProcess(const ScratchDirectory& scratch, const std::string& name,
               std::vector<std::string> arguments, const std::string& program = kBaton);
  // Kills it, if it still runs. The test fails when a sanitizer has found something in it.
  ~BatonProcess();
  BatonProcess(const BatonProcess&) = delete;

  // Runs it again with these arguments behind its own, once it has ended.
  void Restart(const std::vector<std::string>& more);

  // Waits for the port file; false when the process ended or a minute has passed.
  bool WaitForPorts();
  int grpc_port() const { return grpc_port_; }
  int http_port() const { return http_port_; }
  std::string grpc_address() const { return "127.0.0.1:" + std::to_string(grpc_port_); }

  void Signal(int signal);
  bool HasEnded() const;
  // The exit code, 128 + signal when it was killed; -1 when it still runs after a minute.
  int Wait();

  std::string Log() const;  // its standard error so far

 private:
  const std::string program_;
  const std::string port_file_;
  const std::string log_file_;
  std::vector<std::string> arguments_;
  pid_t pid_ = -1;
  int grpc_port_ = 0;
  int http_port_ = 0;
};

// Runs `baton arguments...` to its end; its standard output. The exit code goes to `code`.
std::string RunBaton(const ScratchDirectory& scratch, const std::vector<std::string>& arguments,
                     int* code, const std::string& program = kBaton);

// The body of http://127.0.0.1:port/path, empty when there is none.
std::string HttpGet(int port, const std::string& path);

// The value of a series in the process's /metrics; -1 when it is not there.
double Metric(const BatonProcess& process, const std::string& series);

// Calls `done` until it is true; false after `seconds` (more when a sanitizer slows things down).
template <typename Done>
bool Eventually(double seconds, Done done);

void PauseMillis(int millis);

template <typename Done>
bool Eventually(double seconds, Done done) {
  for (int i = 0; i < static_cast<int>(seconds * 100 * kSanitizedTestScale); ++i) {
    if (done()) return true;
    PauseMillis(10);
  }
  return done();
}

}  // namespace baton::e2e

#endif  // BATON_TESTS_E2E_PROCESS_H_
