#include "tests/e2e/process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/check.h"

namespace baton::e2e {
namespace {

std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

// Standard output to `out`, standard error to `err`; the child dies with the test.
pid_t Spawn(const std::string& program, const std::vector<std::string>& arguments,
            const std::string& out, const std::string& err) {
  const std::string path = std::string(BATON_BINARY_DIR) + "/" + program;
  std::vector<char*> argv = {const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = ::fork();
  BATON_CHECK(pid >= 0);
  if (pid > 0) return pid;
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDOUT_FILENO);
  ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600), STDERR_FILENO);
  ::execv(path.c_str(), argv.data());
  ::_exit(127);
}

int ExitCode(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int WaitForEnd(pid_t pid) {
  int status = 0;
  const bool ended = Eventually(60, [&] { return ::waitpid(pid, &status, WNOHANG) == pid; });
  return ended ? ExitCode(status) : -1;
}

}  // namespace

void PauseMillis(int millis) { std::this_thread::sleep_for(std::chrono::milliseconds(millis)); }

ScratchDirectory::ScratchDirectory() {
  std::string path = (std::filesystem::temp_directory_path() / "baton-e2e-XXXXXX").string();
  BATON_CHECK(::mkdtemp(path.data()) != nullptr);
  path_ = path;
}

ScratchDirectory::~ScratchDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

BatonProcess::BatonProcess(const ScratchDirectory& scratch, const std::string& name,
                           std::vector<std::string> arguments, const std::string& program)
    : program_(program),
      port_file_(scratch.File(name + ".ports")),
      log_file_(scratch.File(name + ".log")),
      arguments_(std::move(arguments)) {
  arguments_.push_back("--port-file=" + port_file_);
  pid_ = Spawn(program_, arguments_, "/dev/null", log_file_);
}

void BatonProcess::Restart(const std::vector<std::string>& more) {
  BATON_CHECK_GE(pid_ < 0 ? 0 : Wait(), 0);
  std::filesystem::remove(port_file_);
  for (const std::string& argument : more) {
    if (std::find(arguments_.begin(), arguments_.end(), argument) == arguments_.end()) {
      arguments_.push_back(argument);
    }
  }
  pid_ = Spawn(program_, arguments_, "/dev/null", log_file_);
}

BatonProcess::~BatonProcess() {
  if (pid_ >= 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  const std::string log = Log();
  for (const char* report : {"Sanitizer", "runtime error:"}) {
    if (log.find(report) != std::string::npos) ADD_FAILURE() << log_file_ << ":\n" << log;
  }
}

bool BatonProcess::WaitForPorts() {
  const bool found =
      Eventually(60, [this] { return std::filesystem::exists(port_file_) || HasEnded(); });
  const std::string ports = ReadFile(port_file_);
  if (!found || ports.empty()) return false;
  grpc_port_ = std::atoi(ports.c_str() + ports.find("grpc=") + 5);
  http_port_ = std::atoi(ports.c_str() + ports.find("http=") + 5);
  return true;
}

void BatonProcess::Signal(int signal) { ::kill(pid_, signal); }

bool BatonProcess::HasEnded() const {
  siginfo_t info = {};
  return pid_ < 0 ||
         ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
         info.si_pid != 0;
}

int BatonProcess::Wait() {
  const int code = WaitForEnd(pid_);
  if (code >= 0) pid_ = -1;
  return code;
}

std::string BatonProcess::Log() const { return ReadFile(log_file_); }

std::string RunBaton(const ScratchDirectory& scratch, const std::vector<std::string>& arguments,
                     int* code, const std::string& program) {
  const std::string out = scratch.File("out");
  const pid_t pid = Spawn(program, arguments, out, scratch.File("err"));
  *code = WaitForEnd(pid);
  if (*code < 0) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
  }
  return ReadFile(out);
}

std::string HttpGet(int port, const std::string& path) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (::connect(socket, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0) {
    const std::string request = "GET " + path + " HTTP/1.1\r\nConnection: close\r\n\r\n";
    char buffer[4096];
    ssize_t n = ::send(socket, request.data(), request.size(), MSG_NOSIGNAL);
    while (n > 0 && (n = ::recv(socket, buffer, sizeof buffer, 0)) > 0) {
      answer.append(buffer, static_cast<size_t>(n));
    }
  }
  ::close(socket);
  const size_t body = answer.find("\r\n\r\n");
  return body == std::string::npos ? std::string() : answer.substr(body + 4);
}

double Metric(const BatonProcess& process, const std::string& series) {
  const std::string text = "\n" + HttpGet(process.http_port(), "/metrics");
  const size_t at = text.find("\n" + series + " ");
  return at == std::string::npos ? -1 : std::atof(text.c_str() + at + series.size() + 2);
}

}  // namespace baton::e2e
