// Chat templates rendered as Jinja2 renders them (golden file by
// tools/make_golden/chat_template.py), and refused with a line and a reason where they go beyond
// the supported part.

#include "model/chat_template.h"

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/tokenizer.h"
#include "tests/model/tokenizer_testing.h"

namespace baton::model {
namespace {

using ::testing::HasSubstr;
using OrderedJson = nlohmann::ordered_json;

absl::StatusOr<std::string> Render(const std::string& source, const OrderedJson& variables) {
  absl::StatusOr<ChatTemplate> compiled = ChatTemplate::Compile(source);
  if (!compiled.ok()) return compiled.status();
  return compiled->Render(variables.dump());
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

// Refusals must say where; successes must be equal.
void ExpectAsGolden(const absl::StatusOr<std::string>& rendered, const OrderedJson& golden) {
  if (golden.contains("output")) {
    ASSERT_TRUE(rendered.ok()) << rendered.status();
    EXPECT_EQ(*rendered, golden["output"].get<std::string>());
    return;
  }
  ASSERT_FALSE(rendered.ok()) << "gives " << *rendered << ", but Jinja2 says " << golden["raises"];
  EXPECT_THAT(Message(rendered.status()), HasSubstr("chat template, line "));
}

TEST(ChatTemplate, ConversationsAsJinja2) {
  const OrderedJson golden = OrderedJson::parse(ReadData("golden_chat.json"));
  for (const OrderedJson& chat : golden["chats"]) {
    const std::string name = chat["template"].get<std::string>();
    OrderedJson variables = golden["special"];
    variables["messages"] = golden["conversations"][chat["conversation"].get<size_t>()];
    variables.update(chat["extra"]);
    SCOPED_TRACE(absl::StrCat(name, ", conversation ", chat["conversation"].get<int>(), ", ",
                              chat["extra"].dump()));
    ExpectAsGolden(Render(golden["templates"][name].get<std::string>(), variables), chat);
  }
}

TEST(ChatTemplate, RulesOfTheLanguageAsJinja2) {
  const OrderedJson golden = OrderedJson::parse(ReadData("golden_chat.json"));
  for (const OrderedJson& snippet : golden["snippets"]) {
    const std::string source = snippet["source"].get<std::string>();
    SCOPED_TRACE(source);
    ExpectAsGolden(Render(source, golden["variables"]), snippet);
  }
}

TEST(ChatTemplate, UnsupportedConstructsAreNamedWithTheirLine) {
  const struct {
    const char* source;
    const char* names;
  } cases[] = {
      {"a\n\n{% include 'x' %}", "line 3: {% include %} is not supported"},
      {"\n{{ 2 ** 3 }}", "line 2: the operator ** is not supported"},
      {"{{ l | map('upper') }}", "line 1: the filter 'map' is not supported"},
      {"{{ l is divisibleby 3 }}", "the test 'divisibleby' is not supported"},
      {"{{ 'é'.upper() }}", "upper and lower of text that is not ASCII"},
      {"{{ 'a'.title() }}", "the method 'title' of a string"},
      {"{{ l.append(1) }}", "the method 'append' of a list"},
      {"{{ strftime_now('%Y') }}", "the function 'strftime_now'"},
      {"{{ l }}", "printing a list"},
      {"{% set a, b = l %}", "set of several names"},
      {"{% for x in l recursive %}{% endfor %}", "a recursive loop"},
      {"{{ f(*l) }}", "unpacking of arguments"},
      {"{{ {1: 2} | tojson }}", "a key that is an integer"},
      {"{{ l | tojson(separators=0) }}", "the argument 'separators' of tojson"},
      {"{% set n = namespace() %}{% set n.a = n %}", "a namespace inside a namespace"},
      {"{% set n = namespace() %}{% set l = [n] %}", "a namespace inside a list"},
      {"{{ 12345678901234567890 }}", "a number other than up to 18 digits"},
  };
  for (const auto& [source, names] : cases) {
    const absl::StatusOr<std::string> rendered = Render(source, {{"l", {1, 2}}});
    EXPECT_EQ(rendered.status().code(), absl::StatusCode::kUnimplemented)
        << source << " " << rendered.status();
    EXPECT_THAT(Message(rendered.status()), HasSubstr(names));
  }
}

TEST(ChatTemplate, RunawayTemplatesAreStopped) {
  const std::string loops =
      "{% for a in l %}{% for b in l %}{% for c in l %}{% for d in l %}{% endfor %}{% endfor %}{% "
      "endfor %}{% endfor %}";
  const std::string doubling =
      "{% set n = namespace(s='xxxxxxxx') %}{% for a in l %}{% set n.s = n.s + n.s %}{% endfor %}";
  const std::string copying =
      "{% set n = namespace(s='') %}{% for a in l %}{% for b in l %}{% set n.s = n.s ~ big %}{% "
      "endfor %}{% endfor %}";
  const std::string recursion = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
  OrderedJson variables = {{"l", std::vector<int>(200, 1)}, {"big", std::string(100'000, 'x')}};
  for (const std::string& source : {loops, doubling, copying, recursion}) {
    const absl::StatusOr<std::string> rendered = Render(source, variables);
    EXPECT_EQ(rendered.status().code(), absl::StatusCode::kResourceExhausted)
        << source << rendered.status();
  }
  // Values that would nest too deeply to be destroyed, and expressions too deep to be evaluated.
  const std::string nesting =
      "{% set n = namespace(s=[]) %}{% for a in l %}{% set n.s = [n.s] %}{% endfor %}";
  EXPECT_THAT(Message(Render(nesting, variables).status()), HasSubstr("nest 65 deep"));
  const std::string parentheses =
      "{{ " + std::string(5000, '(') + "1" + std::string(5000, ')') + " }}";
  EXPECT_EQ(Render(parentheses, variables).status().code(), absl::StatusCode::kUnimplemented);
  std::string chain = "{{ 1";
  for (int i = 0; i < 5000; ++i) chain += "+1";
  EXPECT_EQ(Render(chain + " }}", variables).status().code(), absl::StatusCode::kUnimplemented);
  std::string ifs;
  for (int i = 0; i < 5000; ++i) ifs += "{% if 1 %}";
  EXPECT_EQ(Render(ifs, variables).status().code(), absl::StatusCode::kUnimplemented);
  std::string json = "{\"l\":" + std::string(500, '[') + std::string(500, ']') + "}";
  EXPECT_EQ(ChatTemplate::Compile("")->Render(json).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ChatTemplate, GarbageIsRefusedNotFatal) {
  const OrderedJson golden = OrderedJson::parse(ReadData("golden_chat.json"));
  const std::string bits[] = {"{%", "%}",    "{{", "}}", "{#",  "#}",     "-",    "if", "for",
                              "in", "x",     "'",  "(",  ")",   "[",      "]",    ".",  "|",
                              "is", "endif", " ",  "\n", "set", "=",      "0",    ":",  ",",
                              "{",  "}",     "\\", "é",  "raw", "endraw", "macro"};
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    GoldenRandom random(seed);
    std::string source;
    for (uint64_t n = random.Below(20); n > 0; --n)
      source += bits[random.Below(std::size(bits))] + (random.Below(2) ? " " : "");
    const absl::StatusOr<std::string> rendered = Render(source, golden["variables"]);
    if (!rendered.ok()) {
      EXPECT_THAT(Message(rendered.status()), HasSubstr("chat template"));
    }
  }
  // Real templates with a byte gone or a stretch cut out.
  for (const auto& [name, source] : golden["templates"].items()) {
    for (uint64_t seed = 0; seed < 60; ++seed) {
      GoldenRandom random(seed);
      std::string damaged = source.get<std::string>();
      damaged.erase(random.Below(damaged.size()), 1 + random.Below(random.Below(2) ? 1 : 30));
      Render(damaged, golden["variables"]).IgnoreError();
    }
  }
  EXPECT_EQ(ChatTemplate::Compile("\xFF").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ChatTemplate::Compile("a")->Render("[]").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ChatTemplate::Compile("a")->Render("{").status().code(),
            absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace baton::model
