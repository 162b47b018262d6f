#include "base/build_info.h"

namespace baton {

std::string_view Version() { return BATON_VERSION; }
std::string_view Revision() { return BATON_REVISION; }

}  // namespace baton
