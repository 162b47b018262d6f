#ifndef BATON_BASE_GAUGE_SHARE_H_
#define BATON_BASE_GAUGE_SHARE_H_

// One part of a gauge that shows the sum over several: the ranks of a process each set their own.
// What this part has set goes from the gauge with the object. One thread.

#include "base/metrics.h"

namespace baton {

class GaugeShare {
 public:
  explicit GaugeShare(const GaugeHandle& gauge) : gauge_(gauge) {}
  ~GaugeShare() { Set(0); }
  GaugeShare(const GaugeShare&) = delete;
  GaugeShare& operator=(const GaugeShare&) = delete;

  // Whole numbers: a sum of their differences is exact.
  void Set(int64_t value) {
    if (value == value_) return;
    gauge_.Add(static_cast<double>(value - value_));
    value_ = value;
  }

 private:
  const GaugeHandle gauge_;
  int64_t value_ = 0;
};

}  // namespace baton

#endif  // BATON_BASE_GAUGE_SHARE_H_
