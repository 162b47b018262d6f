#include "base/config_schema.h"

#include <arpa/inet.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "base/host_port.h"

namespace baton::internal {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// Shortest text that reads back as the same number.
std::string NumberText(double value) {
  char text[400];
  const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::fixed).ptr;
  return std::string(text, end);
}

std::string TypeWords(const FieldDescriptor& leaf) {
  if (leaf.is_repeated()) return "list";
  switch (leaf.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_STRING:
      return "text";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "number";
    default:
      return "integer";
  }
}

std::string AllowedWords(const v1::FieldSpec& spec) {
  std::string words;
  if (spec.has_max()) {
    words = NumberText(spec.min()) + " .. " + NumberText(spec.max());
    if (!spec.unit().empty()) words += " " + spec.unit();
  }
  for (const std::string& value : spec.values()) words += (words.empty() ? "" : ", ") + value;
  if (spec.format() == v1::FORMAT_ADDRESS) words = "host:port";
  if (spec.format() == v1::FORMAT_WORKER) words = "host:port or dns:host:port, separated by commas";
  if (spec.format() == v1::FORMAT_PEER) words = "host:port, separated by commas";
  if (spec.format() == v1::FORMAT_IP) words = "IP address";
  if (spec.format() == v1::FORMAT_IP_PORT) words = "IP address:port";
  if (spec.format() == v1::FORMAT_NAMES) words = "names, separated by commas";
  return words;
}

std::string EnvironmentName(const std::string& path) {
  std::string name = "BATON_";
  for (const char c : path) {
    name += c == '.' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

void Collect(const Descriptor& message, const std::string& prefix,
             std::vector<const FieldDescriptor*> chain, Schema& schema) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const std::string path = prefix + field.name();
    chain.push_back(&field);
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      schema.sections.push_back({path, field.options().GetExtension(v1::section)});
      Collect(*field.message_type(), path + ".", chain, schema);
    } else {
      BATON_CHECK_MSG(field.options().HasExtension(v1::spec), "no spec in config.proto: " + path);
      const v1::FieldSpec& spec = field.options().GetExtension(v1::spec);
      schema.fields.push_back({.words = {.path = path,
                                         .environment = EnvironmentName(path),
                                         .alias = spec.alias(),
                                         .type = TypeWords(field),
                                         .default_value = spec.default_value(),
                                         .allowed = AllowedWords(spec),
                                         .unit = spec.unit(),
                                         .help = spec.help()},
                               .spec = &spec,
                               .chain = chain});
    }
    chain.pop_back();
  }
}

// --- Values. Each check returns what is wrong, or nullopt.

std::string Expected(const SchemaField& field) {
  std::string words = field.words.type == "list" ? "text" : field.words.type;
  if (!field.words.allowed.empty()) words += " (" + field.words.allowed + ")";
  return words;
}

std::optional<std::string> CheckRange(const SchemaField& field, double value,
                                      std::string_view text) {
  const v1::FieldSpec& spec = *field.spec;
  if (spec.has_max() && (value < spec.min() || value > spec.max())) {
    return std::string(text) + " is out of range; allowed: " + field.words.allowed +
           "; default: " + field.words.default_value;
  }
  return std::nullopt;
}

template <typename Number>
std::optional<std::string> ParseNumber(const SchemaField& field, std::string_view text,
                                       Number* value) {
  const char* const end = text.data() + text.size();
  const auto result = std::from_chars(text.data(), end, *value);
  if (result.ec == std::errc::result_out_of_range) {
    return std::string(text) + " is out of range; allowed: " + Expected(field);
  }
  bool finite = true;
  if constexpr (std::is_floating_point_v<Number>) finite = std::isfinite(*value);
  if (result.ec != std::errc() || result.ptr != end || !finite) {
    return "\"" + std::string(text) + "\" is not a valid value; expected: " + Expected(field);
  }
  return CheckRange(field, static_cast<double>(*value), text);
}

// host:port or [v6]:port.
bool IsAddress(std::string_view text, int min_port) {
  const size_t colon = text.rfind(':');
  if (colon == std::string_view::npos || colon == 0) return false;
  std::string_view host = text.substr(0, colon);
  const std::string_view digits = text.substr(colon + 1);
  int port = -1;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (result.ec != std::errc() || result.ptr != digits.data() + digits.size()) return false;
  if (port < min_port || port > 65535) return false;
  if (host.front() == '[') {
    return host.size() > 2 && host.back() == ']' && host.find(':') != std::string_view::npos;
  }
  return host.find_first_of(":[] \t/") == std::string_view::npos;
}

bool IsIp(const std::string& text) {
  unsigned char bytes[16];
  return inet_pton(AF_INET, text.c_str(), bytes) == 1 ||
         inet_pton(AF_INET6, text.c_str(), bytes) == 1;
}

bool IsIpPort(const std::string& text) {
  return IsAddress(text, 1) && IsIp(SplitHostPort(text)->host);
}

// One address, or a name for many: "dns:baton-decode:50071".
bool IsWorker(std::string_view text) {
  if (IsAddress(text, 1)) return true;
  return text.starts_with("dns:") && IsAddress(text.substr(4), 1);
}

// What UCX takes for a list: "mlx5_0:1,eth0".
bool AreNames(std::string_view text) {
  if (text.empty() || text.front() == ',' || text.back() == ',') return false;
  return text.find(",,") == std::string_view::npos &&
         text.find_first_not_of(
             "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:,") ==
             std::string_view::npos;
}

bool AllDigits(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// `text` is completed in place: a port alone keeps the default's host.
std::optional<std::string> CheckText(const SchemaField& field, std::string& text) {
  const v1::FieldSpec& spec = *field.spec;
  const std::string given = text;
  if (spec.values_size() > 0 &&
      std::find(spec.values().begin(), spec.values().end(), text) == spec.values().end()) {
    return "\"" + text + "\" is not one of the allowed values: " + field.words.allowed +
           "; default: " + field.words.default_value;
  }
  if (spec.format() == v1::FORMAT_ADDRESS) {
    if (AllDigits(text)) {
      const std::string& fallback = spec.default_value();
      text = fallback.substr(0, fallback.rfind(':') + 1) + text;
    }
    if (!IsAddress(text, 0)) {
      return "\"" + given +
             "\" is not an address; expected host:port with port 0 .. 65535, for example " +
             spec.default_value();
    }
  }
  if (spec.format() == v1::FORMAT_WORKER && !IsWorker(text)) {
    return "\"" + text +
           "\" is not an address; expected host:port with port 1 .. 65535, for example "
           "10.0.0.7:50061, or dns:host:port for a name with many addresses, for example "
           "dns:baton-prefill:50061";
  }
  if (spec.format() == v1::FORMAT_PEER && !IsAddress(text, 1)) {
    return "\"" + text +
           "\" is not an address; expected host:port with port 1 .. 65535, for example "
           "10.0.0.7:7000";
  }
  if (text.find('\0') != std::string::npos) return "the text holds a zero byte; remove it";
  if (spec.format() == v1::FORMAT_IP && !text.empty() && !IsIp(text)) {
    return "\"" + text + "\" is not an IP address; expected for example 10.0.0.7, or nothing";
  }
  if (spec.format() == v1::FORMAT_IP_PORT && !text.empty() && !IsIpPort(text)) {
    return "\"" + text + "\" is not an IP address with a port; expected for example 10.0.0.10:53 " +
           "or [fd00::a]:53, or nothing";
  }
  if (spec.format() == v1::FORMAT_NAMES && !AreNames(text)) {
    return "\"" + text + "\" is not a list of names; expected names separated by commas without " +
           "spaces, for example " + spec.default_value();
  }
  return std::nullopt;
}

Message& Parent(const SchemaField& field, Config& config) {
  Message* message = &config;
  for (size_t i = 0; i + 1 < field.chain.size(); ++i) {
    message = message->GetReflection()->MutableMessage(message, field.chain[i]);
  }
  return *message;
}

const Message& Parent(const SchemaField& field, const Config& config) {
  const Message* message = &config;
  for (size_t i = 0; i + 1 < field.chain.size(); ++i) {
    message = &message->GetReflection()->GetMessage(*message, field.chain[i]);
  }
  return *message;
}

std::optional<std::string> SetScalar(const SchemaField& field, std::string text, Message& parent) {
  const Reflection& reflection = *parent.GetReflection();
  const FieldDescriptor& leaf = field.leaf();
  std::optional<std::string> problem;
  switch (leaf.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL: {
      if (text != "true" && text != "false") {
        return "\"" + text + "\" is not a valid value; expected: true or false";
      }
      reflection.SetBool(&parent, &leaf, text == "true");
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_INT32: {
      int32_t value = 0;
      if ((problem = ParseNumber(field, text, &value))) return problem;
      reflection.SetInt32(&parent, &leaf, value);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_INT64: {
      int64_t value = 0;
      if ((problem = ParseNumber(field, text, &value))) return problem;
      reflection.SetInt64(&parent, &leaf, value);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      uint64_t value = 0;
      if ((problem = ParseNumber(field, text, &value))) return problem;
      reflection.SetUInt64(&parent, &leaf, value);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double value = 0;
      if ((problem = ParseNumber(field, text, &value))) return problem;
      reflection.SetDouble(&parent, &leaf, value);
      return std::nullopt;
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      if ((problem = CheckText(field, text))) return problem;
      reflection.SetString(&parent, &leaf, text);
      return std::nullopt;
    }
    default:
      BATON_CHECK_MSG(false, "a type that config.proto may not use: " + field.words.path);
  }
  return std::nullopt;
}

std::string YamlText(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (c == '\n') {
      quoted += "\\n";
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

}  // namespace

bool IsHostPort(std::string_view text) { return IsAddress(text, 1); }

const SchemaField* Schema::Find(std::string_view path) const {
  const auto it = std::find_if(fields.begin(), fields.end(), [path](const SchemaField& field) {
    return field.words.path == path;
  });
  return it == fields.end() ? nullptr : &*it;
}

const SchemaField* Schema::FindEnvironment(std::string_view name) const {
  const auto it = std::find_if(fields.begin(), fields.end(), [name](const SchemaField& field) {
    return field.words.environment == name;
  });
  return it == fields.end() ? nullptr : &*it;
}

bool Schema::IsSection(std::string_view path) const {
  return std::any_of(sections.begin(), sections.end(),
                     [path](const ConfigSection& section) { return section.path == path; });
}

const Schema& GetSchema() {
  static const Schema schema = [] {
    Schema made;
    Collect(*Config::descriptor(), "", {}, made);
    return made;
  }();
  return schema;
}

std::optional<std::string> SetField(const SchemaField& field, const std::vector<std::string>& items,
                                    Config& config) {
  Message& parent = Parent(field, config);
  if (!field.leaf().is_repeated()) {
    BATON_CHECK_EQ(items.size(), 1u);
    return SetScalar(field, items[0], parent);
  }
  if (field.spec->has_max_items() && static_cast<int64_t>(items.size()) > field.spec->max_items()) {
    return std::to_string(items.size()) + " items; allowed: at most " +
           std::to_string(field.spec->max_items());
  }
  std::vector<std::string> checked = items;
  for (std::string& item : checked) {
    if (auto problem = CheckText(field, item)) return problem;
  }
  parent.GetReflection()->ClearField(&parent, &field.leaf());
  for (const std::string& item : checked)
    parent.GetReflection()->AddString(&parent, &field.leaf(), item);
  return std::nullopt;
}

std::optional<std::string> SetFieldFromText(const SchemaField& field, std::string_view text,
                                            Config& config) {
  if (!field.leaf().is_repeated()) return SetField(field, {std::string(text)}, config);
  std::vector<std::string> items;
  while (!text.empty()) {
    const size_t comma = std::min(text.find(','), text.size());
    std::string_view item = text.substr(0, comma);
    const size_t first = item.find_first_not_of(' ');
    item = first == std::string_view::npos
               ? ""
               : item.substr(first, item.find_last_not_of(' ') - first + 1);
    items.emplace_back(item);
    text.remove_prefix(std::min(comma + 1, text.size()));
  }
  return SetField(field, items, config);
}

std::string FieldAsYaml(const SchemaField& field, const Config& config) {
  const Message& parent = Parent(field, config);
  const Reflection& reflection = *parent.GetReflection();
  const FieldDescriptor& leaf = field.leaf();
  if (leaf.is_repeated()) {
    std::string list;
    for (int i = 0; i < reflection.FieldSize(parent, &leaf); ++i) {
      list += (i == 0 ? "" : ", ") + YamlText(reflection.GetRepeatedString(parent, &leaf, i));
    }
    return "[" + list + "]";
  }
  switch (leaf.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(parent, &leaf) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_INT32:
      return std::to_string(reflection.GetInt32(parent, &leaf));
    case FieldDescriptor::CPPTYPE_INT64:
      return std::to_string(reflection.GetInt64(parent, &leaf));
    case FieldDescriptor::CPPTYPE_UINT64:
      return std::to_string(reflection.GetUInt64(parent, &leaf));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberText(reflection.GetDouble(parent, &leaf));
    default:
      return YamlText(reflection.GetString(parent, &leaf));
  }
}

}  // namespace baton::internal
