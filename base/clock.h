#ifndef BATON_BASE_CLOCK_H_
#define BATON_BASE_CLOCK_H_

// Time as a value. Tick is a monotonic instant in nanoseconds since an arbitrary start of one
// process (or of one simulation); Duration a difference of two. Instants never cross a process
// border: deadlines travel as a remaining duration. Decisions take a Tick as a parameter; only
// shells own a Clock.

#include <compare>
#include <cstdint>
#include <ostream>

namespace baton {

class Duration {
 public:
  constexpr Duration() = default;
  static constexpr Duration Nanos(int64_t ns) { return Duration(ns); }
  static constexpr Duration Micros(int64_t us) { return Duration(us * 1'000); }
  static constexpr Duration Millis(int64_t ms) { return Duration(ms * 1'000'000); }
  static constexpr Duration Seconds(double s) { return Duration(static_cast<int64_t>(s * 1e9)); }
  constexpr int64_t nanos() const { return nanos_; }
  constexpr int64_t micros() const { return nanos_ / 1'000; }
  constexpr int64_t millis() const { return nanos_ / 1'000'000; }
  constexpr double seconds() const { return static_cast<double>(nanos_) * 1e-9; }
  friend constexpr auto operator<=>(Duration a, Duration b) = default;
  friend constexpr Duration operator+(Duration a, Duration b) {
    return Duration(a.nanos_ + b.nanos_);
  }
  friend constexpr Duration operator-(Duration a, Duration b) {
    return Duration(a.nanos_ - b.nanos_);
  }
  friend constexpr Duration operator*(Duration a, int64_t n) { return Duration(a.nanos_ * n); }
  friend constexpr Duration operator/(Duration a, int64_t n) { return Duration(a.nanos_ / n); }
  friend std::ostream& operator<<(std::ostream& out, Duration d) { return out << d.nanos_ << "ns"; }

 private:
  constexpr explicit Duration(int64_t nanos) : nanos_(nanos) {}
  int64_t nanos_ = 0;
};

class Tick {
 public:
  constexpr Tick() = default;
  static constexpr Tick FromNanos(int64_t ns) { return Tick(ns); }
  // Later than every other instant: "no deadline".
  static constexpr Tick Infinite() { return Tick(INT64_MAX); }
  constexpr int64_t nanos() const { return nanos_; }
  constexpr bool infinite() const { return nanos_ == INT64_MAX; }
  friend constexpr auto operator<=>(Tick a, Tick b) = default;
  friend constexpr Tick operator+(Tick t, Duration d) {
    return t.infinite() ? t : Tick(t.nanos_ + d.nanos());
  }
  friend constexpr Duration operator-(Tick a, Tick b) {
    return Duration::Nanos(a.nanos_ - b.nanos_);
  }
  friend std::ostream& operator<<(std::ostream& out, Tick t) { return out << t.nanos_ << "ns"; }

 private:
  constexpr explicit Tick(int64_t nanos) : nanos_(nanos) {}
  int64_t nanos_ = 0;
};

// Source of instants; injected into every shell. Callable from any thread.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual Tick Now() = 0;
};

// The machine's monotonic clock.
class MonotonicClock final : public Clock {
 public:
  Tick Now() override;
};

// A clock that stands still until told otherwise: for tests and the simulation. Single-threaded.
class ManualClock final : public Clock {
 public:
  Tick Now() override { return now_; }
  void Advance(Duration d) { now_ = now_ + d; }
  void Set(Tick t) { now_ = t; }

 private:
  Tick now_;
};

}  // namespace baton

#endif  // BATON_BASE_CLOCK_H_
