#ifndef BATON_BASE_BUILD_INFO_H_
#define BATON_BASE_BUILD_INFO_H_

// What this binary was built from.

#include <string_view>

namespace baton {

std::string_view Version();   // "0.1.0"
std::string_view Revision();  // source revision when the build was configured, or "unknown"

}  // namespace baton

#endif  // BATON_BASE_BUILD_INFO_H_
