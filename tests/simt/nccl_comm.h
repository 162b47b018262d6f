#ifndef BATON_TESTS_SIMT_NCCL_COMM_H_
#define BATON_TESTS_SIMT_NCCL_COMM_H_

// A communicator of the emulated NCCL: ranks are threads or processes of one host, each connected
// to every other by a stream socket whose name follows from the unique id. What travels is framed,
// so that a rank that calls something else than its peer is told so instead of getting its bytes.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/simt/nccl_window.h"

namespace baton::simt {

// What each message says about the call it belongs to; ranks' calls must agree.
struct NcclFrame {
  uint32_t magic = 0x6E63636C;
  uint8_t call = 0;  // NcclCall
  uint8_t dtype = 0;
  uint8_t reduce = 0;
  uint8_t unused = 0;
  int32_t root = 0;
  uint32_t unused2 = 0;
  uint64_t bytes = 0;  // of the message
};

enum class NcclCall : uint8_t { kSendRecv, kAllReduce, kReduceScatter, kAllGather, kBroadcast };

// One direction of one message, as far as it has come.
struct NcclTransfer {
  int peer = 0;
  NcclFrame frame;
  char* data = nullptr;  // frame.bytes
  size_t done = 0;       // with the frame's own bytes
  NcclFrame received;    // of a receive: what the peer says
};

// Something that all ranks do together, each with a file for all others; ranks must agree.
struct NcclMeeting {
  uint32_t magic = 0x6D656574;
  uint32_t what = 0;
  uint32_t flags = 0;
  uint32_t unused = 0;
  uint64_t number = 0;
  uint64_t bytes = 0;
};

class NcclComm {
 public:
  // Starts to connect; see state().
  NcclComm(std::string id, int ranks, int rank, int device);
  ~NcclComm();
  NcclComm(const NcclComm&) = delete;
  NcclComm& operator=(const NcclComm&) = delete;

  enum class State : uint8_t { kConnecting, kReady, kPeerLost, kAborted, kFailed };
  State state() const { return state_; }
  void AwaitConnected();
  // Whatever runs on it ends at once, without results.
  void Abort();

  int ranks() const { return ranks_; }
  int rank() const { return rank_; }
  int device() const { return device_; }
  const std::string& error() const { return error_; }

  // Moves what can be moved of the transfers, which are in the order of the calls; true when all
  // are done, or when there is no sense in waiting (aborted). A mismatch is a fault.
  bool Progress(std::vector<NcclTransfer>& sends, std::vector<NcclTransfer>& receives);

  // Only one operation runs on a communicator at a time: false while another does.
  bool Enter(const void* operation);
  void Leave() { running_ = nullptr; }
  // Takes a place on the device, for an operation that has none: false while it has no room
  // (Options::nccl_room).
  bool TakePlace();
  void LeavePlace();
  static int PlacesTaken(int device);
  // Gives each rank `fd` and gets theirs, by rank (a copy of `fd` for this one); waits for all of
  // them. False when one is gone, or this communicator was aborted. A mismatch is a fault.
  bool Meet(const NcclMeeting& mine, int fd, std::vector<int>* fds);
  NcclOneSided& one_sided() { return one_sided_; }

  // Operations enqueued and not finished.
  std::atomic<int> pending{0};
  // The same of signals, puts and waits, which no abort ends.
  std::atomic<int> one_sided_pending{0};
  // Calls of a group have been taken and are not enqueued yet.
  std::atomic<bool> launching{false};

 private:
  void Connect();
  bool ConnectTo(int peer);
  bool Accept(int listener);
  void Fail(State state, const std::string& why);
  bool Send(NcclTransfer& transfer);
  bool Receive(NcclTransfer& transfer);
  bool SendMeeting(int peer, const NcclMeeting& mine, int fd);
  bool ReceiveMeeting(int peer, const NcclMeeting& mine, int* fd);

  const std::string id_;
  const int ranks_, rank_, device_;
  std::atomic<State> state_{State::kConnecting};
  std::string error_;
  std::vector<int> sockets_;  // by peer; -1: none (this rank)
  std::deque<std::vector<char>> to_self_;
  NcclOneSided one_sided_{this};
  std::atomic<const void*> running_{nullptr};
  std::thread connector_;
};

}  // namespace baton::simt

#endif  // BATON_TESTS_SIMT_NCCL_COMM_H_
