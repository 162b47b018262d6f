#ifndef BATON_BASE_CONFIG_SCHEMA_H_
#define BATON_BASE_CONFIG_SCHEMA_H_

// The configuration's fields by reflection over the generated messages: how to find, check, set and
// show one. Part of base/config; immutable after its first use, so any thread may call.

#include <google/protobuf/descriptor.h>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/config.h"

namespace baton::internal {

struct SchemaField {
  ConfigField words;
  const v1::FieldSpec* spec = nullptr;
  // From Config down to the leaf.
  std::vector<const google::protobuf::FieldDescriptor*> chain;
  const google::protobuf::FieldDescriptor& leaf() const { return *chain.back(); }
};

struct Schema {
  std::vector<SchemaField> fields;
  std::vector<ConfigSection> sections;

  const SchemaField* Find(std::string_view path) const;
  const SchemaField* FindEnvironment(std::string_view name) const;
  bool IsSection(std::string_view path) const;
};

const Schema& GetSchema();

bool IsHostPort(std::string_view text);

// Sets one field from its items (exactly one unless the field is a list). Returns what is wrong
// with the value, in words that end with the fix, and then leaves the configuration as it was;
// nullopt when all is well.
std::optional<std::string> SetField(const SchemaField& field, const std::vector<std::string>& items,
                                    Config& config);

// As SetField, from the one text of a flag or an environment variable: lists are split at commas.
std::optional<std::string> SetFieldFromText(const SchemaField& field, std::string_view text,
                                            Config& config);

// The field's current value as YAML: a scalar, or [a, b].
std::string FieldAsYaml(const SchemaField& field, const Config& config);

}  // namespace baton::internal

#endif  // BATON_BASE_CONFIG_SCHEMA_H_
