#ifndef BATON_TRANSPORT_GROUP_CONTROL_H_
#define BATON_TRANSPORT_GROUP_CONTROL_H_

// What the ranks of a formed group tell each other beside the data, over the connections that the
// formation has left: that the group is broken, that a rank is about to make a call, whom it waits
// for. A thread serves the connections, so news arrive while the loop computes or sleeps, and a
// process that ends is noticed at once.
//
// The methods are for the rank's loop; Break for any thread.

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/clock.h"
#include "base/thread.h"
#include "transport/group/frame_socket.h"
#include "transport/group/group_state.h"

namespace baton::transport {

class GroupControl {
 public:
  static absl::StatusOr<std::unique_ptr<GroupControl>> Start(std::shared_ptr<GroupState> state,
                                                             std::map<int, FrameSocket> sockets,
                                                             std::shared_ptr<Clock> clock);
  // Says good-bye, so that the others know up to which call this rank has taken part.
  ~GroupControl();
  GroupControl(const GroupControl&) = delete;
  GroupControl& operator=(const GroupControl&) = delete;

  // Breaks the group here and, if that was news, everywhere.
  void Break(const GroupFailure& failure, uint64_t last_good_call);
  void Ring(uint64_t call);
  // Tells all that this rank waits in `call` for `ranks`.
  void TellWaiting(uint64_t call, const std::vector<int>& ranks);
  // The good-bye will be that this rank goes on in a newer group.
  void MoveOn();

  // Returns once this rank knows all that peers had told it before: for who is about to blame them.
  // The thread may be behind, for example where the process was stopped. Bounded: false where this
  // took too long.
  bool CatchUp();

  // Readable when the group has broken: for the loop's own poll.
  int broken_fd() const { return broken_fd_; }

 private:
  GroupControl(std::shared_ptr<GroupState> state, std::map<int, FrameSocket> sockets,
               std::shared_ptr<Clock> clock);
  absl::Status Start();
  struct Message {
    Frame frame;
    std::vector<int> accused;  // whom it takes for lost
  };
  void SendToAll(FrameKind kind, const std::string& payload, std::vector<int> accused = {});

  // The thread's.
  void Run();
  bool TakeOutbox(uint64_t* wanted_rounds);
  void Accuse(const std::vector<int>& ranks, const std::string& payload);
  void Serve(int rank, FrameSocket* socket);
  void Handle(int rank, const Frame& frame);
  void Sleep();
  void SayGoodBye();
  void Signal(int fd);

  const std::shared_ptr<GroupState> state_;
  const std::shared_ptr<Clock> clock_;
  int broken_fd_ = -1;  // eventfds
  int outbox_fd_ = -1;
  std::mutex mutex_;
  std::condition_variable served_all_;
  std::vector<Message> outbox_;  // guarded by mutex_, as the next four
  bool stopping_ = false;
  bool moves_on_ = false;
  uint64_t wanted_rounds_ = 0;
  uint64_t served_rounds_ = 0;  // of those that were wanted

  std::map<int, FrameSocket> sockets_;  // the thread's own; closed where the peer has gone
  std::map<int, bool> said_broken_;     // the peer knows that the group is over
  std::map<int, bool> moved_on_;        // the peer is in a newer group
  std::map<int, bool> accused_;         // the peer is being told that it is lost

  std::optional<Thread> thread_;
};

}  // namespace baton::transport

#endif  // BATON_TRANSPORT_GROUP_CONTROL_H_
