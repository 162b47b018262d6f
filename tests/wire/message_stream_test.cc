// Both ends of a message stream over loopback, with several senders and with readers that go on
// from other threads, as the loops' inboxes let them.

#include "wire/message_stream.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/bounded_queue.h"
#include "base/check.h"
#include "base/thread.h"
#include "proto/baton/v1/worker.grpc.pb.h"

namespace baton::wire {
namespace {

constexpr std::chrono::seconds kLimit(120);  // met only when something was lost

// Runs what it is given, one after the other, on a thread of its own: what a loop is to a stream.
class Executor {
 public:
  Executor() : thread_("executor", [this] { Run(); }) {}
  ~Executor() {
    stop_.store(true, std::memory_order_release);
    queue_.Wake();
  }
  void Add(std::function<void()> work) { BATON_CHECK(queue_.TryPush(std::move(work))); }

 private:
  void Run() {
    std::vector<std::function<void()>> works;
    while (!stop_.load(std::memory_order_acquire)) {
      queue_.WaitFor(Duration::Millis(500));
      queue_.DrainInto(works);
      for (const auto& work : works) work();
      works.clear();
    }
  }
  BoundedQueue<std::function<void()>> queue_{10'000};
  std::atomic<bool> stop_{false};
  Thread thread_;
};

// Counts ends, and waits for them.
class Ends {
 public:
  void Add() {
    std::lock_guard<std::mutex> lock(mutex_);
    ++count_;
    changed_.notify_all();
  }
  bool WaitFor(int count) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, kLimit, [&] { return count_ >= count; });
  }
  int count() {
    std::lock_guard<std::mutex> lock(mutex_);
    return count_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  int count_ = 0;  // guarded by mutex_
};

// What the server's streams share.
struct Shared {
  Executor executor;
  Ends ends;
};

// Sends each cancel's number back as a hello, and reads on from the executor's thread.
class EchoStream final : public ServerStream<v1::RouterToDecode, v1::DecodeToRouter> {
 public:
  explicit EchoStream(Shared& shared) : shared_(shared) {}

 private:
  void OnMessage(v1::RouterToDecode& message) override {
    ++messages_;
    v1::DecodeToRouter answer;
    answer.mutable_hello()->set_instance(message.hello().instance());
    shared_.executor.Add([self = shared_from_this(), answer = std::move(answer)]() mutable {
      if (answer.hello().instance() == "finish") {
        self->FinishWith(grpc::Status(grpc::StatusCode::ABORTED, "as asked"));
      } else {
        EXPECT_TRUE(self->Send(std::move(answer)));
      }
      self->ReadNext();
    });
  }
  void OnEnd(const grpc::Status&) override {
    EXPECT_GT(messages_, 0);
    shared_.ends.Add();
  }

  Shared& shared_;
  int messages_ = 0;
};

class EchoService final : public v1::DecodeWorker::CallbackService {
 public:
  explicit EchoService(Shared& shared) : shared_(shared) {}
  grpc::ServerBidiReactor<v1::RouterToDecode, v1::DecodeToRouter>* Session(
      grpc::CallbackServerContext*) override {
    auto stream = std::make_shared<EchoStream>(shared_);
    stream->Begin();
    return stream.get();
  }

 private:
  Shared& shared_;
};

// Keeps what comes back.
class Client final : public ClientStream<v1::DecodeToRouter, v1::RouterToDecode> {
 public:
  Client(const std::shared_ptr<grpc::Channel>& channel, Executor& executor)
      : stub_(v1::DecodeWorker::NewStub(channel)), executor_(executor) {}

  void Start() {
    stub_->async()->Session(context(), this);
    Begin();
  }
  bool SendText(const std::string& text) {
    v1::RouterToDecode message;
    message.mutable_hello()->set_instance(text);
    return Send(std::move(message));
  }
  bool WaitForMessages(size_t count) {
    std::unique_lock<std::mutex> lock(seen_mutex_);
    return changed_.wait_for(lock, kLimit, [&] { return total_ >= count; });
  }
  bool WaitForEnd() {
    std::unique_lock<std::mutex> lock(seen_mutex_);
    return changed_.wait_for(lock, kLimit, [&] { return ends_ > 0; });
  }
  std::map<std::string, int> seen() {
    std::lock_guard<std::mutex> lock(seen_mutex_);
    return seen_;
  }
  int ends() {
    std::lock_guard<std::mutex> lock(seen_mutex_);
    return ends_;
  }
  grpc::Status status() {
    std::lock_guard<std::mutex> lock(seen_mutex_);
    return status_;
  }

 private:
  void OnMessage(v1::DecodeToRouter& message) override {
    {
      std::lock_guard<std::mutex> lock(seen_mutex_);
      ++seen_[message.hello().instance()];
      ++total_;
      changed_.notify_all();
    }
    executor_.Add([self = shared_from_this()] { self->ReadNext(); });
  }
  void OnEnd(const grpc::Status& status) override {
    std::lock_guard<std::mutex> lock(seen_mutex_);
    ++ends_;
    status_ = status;
    changed_.notify_all();
  }

  const std::unique_ptr<v1::DecodeWorker::Stub> stub_;
  Executor& executor_;
  std::mutex seen_mutex_;
  std::condition_variable changed_;
  std::map<std::string, int> seen_;  // guarded by seen_mutex_, like the rest
  size_t total_ = 0;
  int ends_ = 0;
  grpc::Status status_;
};

class MessageStreamTest : public ::testing::Test {
 protected:
  MessageStreamTest() {
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                                   grpc::InsecureChannelCredentials());
  }

  std::shared_ptr<Client> Connect() {
    auto client = std::make_shared<Client>(channel_, executor_);
    client->Start();
    return client;
  }

  Shared shared_;
  Executor executor_;
  EchoService service_{shared_};
  std::unique_ptr<grpc::Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

TEST_F(MessageStreamTest, EveryMessageArrivesOnce) {
  constexpr int kStreams = 4;
  constexpr int kSenders = 3;
  constexpr int kMessages = 100;
  std::vector<std::shared_ptr<Client>> clients;
  for (int i = 0; i < kStreams; ++i) clients.push_back(Connect());
  {
    std::vector<Thread> senders;
    for (int sender = 0; sender < kSenders; ++sender) {
      senders.emplace_back("sender", [&clients, sender] {
        for (int i = 0; i < kMessages; ++i) {
          const std::string text = std::to_string(sender) + "." + std::to_string(i);
          for (const auto& client : clients) EXPECT_TRUE(client->SendText(text));
        }
      });
    }
  }
  for (const auto& client : clients) {
    ASSERT_TRUE(client->WaitForMessages(kSenders * kMessages));
    const std::map<std::string, int> seen = client->seen();
    EXPECT_EQ(seen.size(), static_cast<size_t>(kSenders * kMessages));
    for (const auto& [text, count] : seen) EXPECT_EQ(count, 1) << text;
    EXPECT_EQ(client->ends(), 0);
    client->Cancel();
    client->Cancel();  // again: no effect
  }
  EXPECT_TRUE(shared_.ends.WaitFor(kStreams));
  for (const auto& client : clients) {
    EXPECT_TRUE(client->WaitForEnd());
    EXPECT_EQ(client->ends(), 1);
    EXPECT_FALSE(client->SendText("too late"));
  }
  EXPECT_EQ(shared_.ends.count(), kStreams);
}

TEST_F(MessageStreamTest, TheServersEndComesAfterWhatItSent) {
  const std::shared_ptr<Client> client = Connect();
  for (int i = 0; i < 50; ++i) EXPECT_TRUE(client->SendText(std::to_string(i)));
  EXPECT_TRUE(client->SendText("finish"));
  ASSERT_TRUE(client->WaitForEnd());
  EXPECT_EQ(client->status().error_code(), grpc::StatusCode::ABORTED);
  EXPECT_EQ(client->seen().size(), 50u);
  EXPECT_TRUE(shared_.ends.WaitFor(1));
}

}  // namespace
}  // namespace baton::wire
