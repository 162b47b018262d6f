# Text <-> token ids and chat templates: a library of its own, so that server/ links no kernels for it.
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
find_package(nlohmann_json REQUIRED)
baton_library(baton_tokenizer
  SRCS tokenizer.cc tokenizer_added.cc tokenizer_bpe.cc tokenizer_parse.cc tokenizer_parts.cc
       tokenizer_pretokenize.cc tokenizer_regex.cc tokenizer_regex_translate.cc
       tokenizer_unicode_delta.cc tokenizer_utf8.cc
       chat_template.cc chat_template_builtins.cc chat_template_eval.cc chat_template_lex.cc
       chat_template_operators.cc chat_template_parse.cc chat_template_parse_expr.cc
       chat_template_value.cc
  DEPS baton_base PkgConfig::PCRE2 nlohmann_json::nlohmann_json
       absl::flat_hash_map absl::inlined_vector absl::function_ref absl::status absl::statusor
       absl::str_format absl::strings absl::synchronization)
