#include "tests/transport/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/check.h"

extern char** environ;

namespace baton::transport {
namespace {

constexpr int kLineLimitMillis = 120'000;

}  // namespace

ChildProcess::ChildProcess(const std::string& program, const std::vector<std::string>& arguments) {
  int in[2], out[2];
  BATON_CHECK(pipe2(in, O_CLOEXEC) == 0 && pipe2(out, O_CLOEXEC) == 0);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  std::vector<std::string> words = {program};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  const int error = posix_spawn(&pid_, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  BATON_CHECK_MSG(error == 0, program);
  close(in[0]);
  close(out[1]);
  input_ = in[1];
  output_ = out[0];
}

ChildProcess::~ChildProcess() {
  Kill();
  if (input_ >= 0) close(input_);
  close(output_);
}

std::string ChildProcess::ReadLine() {
  std::string line;
  pollfd fd = {output_, POLLIN, 0};
  for (char c = 0;; line += c) {
    if (poll(&fd, 1, kLineLimitMillis) <= 0) return "(no line)" + line;
    if (read(output_, &c, 1) != 1 || c == '\n') return line;
  }
}

void ChildProcess::Signal(int signal) { kill(pid_, signal); }

void ChildProcess::Kill() {
  if (pid_ < 0) return;
  Signal(SIGKILL);
  Wait();
}

int ChildProcess::Finish() {
  close(input_);
  input_ = -1;
  return Wait();
}

int ChildProcess::Wait() {
  int status = 0;
  BATON_CHECK_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

}  // namespace baton::transport
