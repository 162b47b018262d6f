#include "tests/simt/fault.h"

#include <link.h>
#include <unistd.h>

#include <cstdio>
#include <map>
#include <mutex>
#include <sstream>
#include <vector>

namespace baton::simt {
namespace {

// Where the program's own code was loaded: addr2line wants addresses of the file.
uintptr_t LoadBase() {
  uintptr_t base = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* out) {
        *static_cast<uintptr_t*>(out) = info->dlpi_addr;
        return 1;  // the first is the program
      },
      &base);
  return base;
}

std::vector<std::string> Lines(const std::string& command) {
  std::vector<std::string> lines;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return lines;
  char line[4096];
  while (fgets(line, sizeof(line), pipe) != nullptr) {
    std::string text(line);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    lines.push_back(text);
  }
  pclose(pipe);
  return lines;
}

// Pairs of lines: function, file:line; one pair for each function that was inlined.
std::vector<std::string> Symbolize(uintptr_t address) {
  char program[4096] = {};
  if (readlink("/proc/self/exe", program, sizeof(program) - 1) < 0) return {};
  std::ostringstream command;
  command << "addr2line -C -i -f -e '" << program << "' 0x" << std::hex << address - LoadBase()
          << " 2>/dev/null";
  return Lines(command.str());
}

std::mutex& CacheMutex() {
  static std::mutex mutex;
  return mutex;
}

// The part of a path from the project's folder on, where it can be told.
std::string ShortPath(const std::string& path) {
  for (const char* folder : {"/kernels/", "/transport/", "/tests/", "/model/"}) {
    const size_t at = path.rfind(folder);
    if (at != std::string::npos) return path.substr(at + 1);
  }
  return path;
}

}  // namespace

const char* FaultName(FaultKind kind) {
  switch (kind) {
    case FaultKind::kOutOfBounds:
      return "out of bounds";
    case FaultKind::kHostMemory:
      return "host memory";
    case FaultKind::kMisaligned:
      return "misaligned";
    case FaultKind::kUninitialized:
      return "uninitialized";
    case FaultKind::kRace:
      return "race";
    case FaultKind::kAsyncCopy:
      return "asynchronous copy";
    case FaultKind::kProxy:
      return "missing proxy fence";
    case FaultKind::kGroupMma:
      return "warpgroup matrix";
    case FaultKind::kBarrier:
      return "divergent barrier";
    case FaultKind::kDeadlock:
      return "deadlock";
    case FaultKind::kWarp:
      return "divergent warp";
    case FaultKind::kTrap:
      return "trap";
    case FaultKind::kBadLaunch:
      return "bad launch";
    case FaultKind::kStreamOrder:
      return "stream order";
    case FaultKind::kRuntime:
      return "runtime";
    case FaultKind::kCollective:
      return "collective";
  }
  return "?";
}

std::string Fault::Text() const {
  std::ostringstream out;
  out << FaultName(kind) << ": " << what;
  if (!kernel.empty()) {
    out << "\n  in " << kernel << ", block (" << block[0] << ", " << block[1] << ", " << block[2]
        << "), thread " << thread;
  }
  if (!where.empty()) out << "\n  at " << where;
  return out.str();
}

std::string Locate(const void* return_address) {
  static std::map<const void*, std::string> cache;
  const std::lock_guard<std::mutex> lock(CacheMutex());
  const auto known = cache.find(return_address);
  if (known != cache.end()) return known->second;
  // The call is in front of where it returns to.
  const std::vector<std::string> lines = Symbolize(reinterpret_cast<uintptr_t>(return_address) - 1);
  std::string out;
  for (size_t i = 1; i < lines.size(); i += 2) {
    const std::string at = ShortPath(lines[i].substr(0, lines[i].find(" (")));
    // The emulation's own wrappers say nothing.
    if (at.find("tests/simt/device/") != std::string::npos && i + 2 < lines.size()) continue;
    out += (out.empty() ? "" : " < ") + at;
  }
  return cache[return_address] = out;
}

std::string FunctionName(const void* function) {
  static std::map<const void*, std::string> cache;
  const std::lock_guard<std::mutex> lock(CacheMutex());
  const auto known = cache.find(function);
  if (known != cache.end()) return known->second;
  const std::vector<std::string> lines = Symbolize(reinterpret_cast<uintptr_t>(function));
  // Of functions that were inlined at its beginning, the outermost.
  std::string name = lines.size() >= 2 ? lines[lines.size() - 2] : "?";
  const size_t arguments = name.rfind('(');
  if (arguments != std::string::npos) name = name.substr(0, arguments);
  const std::string space = "baton::kernels::cuda::";
  if (name.rfind(space, 0) == 0) name = name.substr(space.size());
  return cache[function] = name;
}

}  // namespace baton::simt
