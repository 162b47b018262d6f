"""Plants one violation of each kind and expects exactly its rule to see it."""

import rules

GUARD = "#ifndef BATON_BASE_A_H_\n#define BATON_BASE_A_H_\n{}\n#endif\n"
LONG_FUNCTION = "int F(int a,\n      int b) {\n" + "  a += b;\n" * 80 + "  return a;\n}\n"

# (rule, tree, a part of the one problem expected, or None for none)
CASES = [
    (rules.include_arrows, {"scheduler/a.cc": '#include "model/config.h"\n'}, "scheduler/ may not include"),
    (rules.include_arrows, {"model/a.cc": '#include "scheduler/types.h"\n'}, None),
    (rules.include_arrows, {"model/a.cc": '#include "scheduler/router.h"\n'}, "model/ may not include"),
    (rules.include_arrows, {"server/a.cc": '#include "model/config.h"\n'}, "server/ may not include"),
    (rules.include_arrows, {"server/main_check.cc": '#include "model/config.h"\n'}, None),
    (rules.include_arrows, {"base/a.cc": '#include "check.h"\n'}, "from the root"),
    (rules.include_arrows, {"prefill_worker/a.cc": '#include "decode_worker/loop.h"\n'}, "may not include"),
    (rules.include_arrows, {"base/config.h": '#include "proto/baton/v1/config.pb.h"\n'}, None),
    (rules.include_arrows, {"base/log.cc": '#include "proto/baton/v1/worker.pb.h"\n'}, "may not include"),
    (rules.confined_headers, {"scheduler/a.cc": "#include <grpcpp/grpcpp.h>\n"}, "grpcpp"),
    (rules.confined_headers, {"model/a.h": '#include "proto/baton/v1/worker.pb.h"\n'}, "worker.pb.h"),
    (rules.confined_headers, {"server/a.cc": "#include <prometheus/counter.h>\n"}, "prometheus"),
    (rules.confined_headers, {"model/a.cc": "#include <cuda_runtime.h>\n"}, "cuda"),
    (rules.banned_words, {"model/a.cc": "auto t = std::chrono::system_clock::now();\n"}, "system_clock"),
    (rules.banned_words, {"model/a.cc": "// not system_clock::now\n"}, None),
    (rules.banned_words, {"model/a.cc": 'Log("std::thread");\n'}, None),
    (rules.banned_words, {"server/a.cc": "int x;\nstd::thread t;\n"}, "server/a.cc:2:"),
    (rules.banned_words, {"base/thread.cc": "std::thread t;\n"}, None),
    (rules.banned_words, {"tests/x/a_test.cc": "sleep(1);\n"}, "sleep"),
    (rules.banned_words, {"server/a.cc": "exit(1);\n"}, "exit"),
    (rules.banned_words, {"server/a.cc": 'getenv("X");\n'}, "getenv"),
    (rules.banned_words, {"tests/x/a_test.cc": "TEST(A, DISABLED_B) {}\n"}, "DISABLED_"),
    (rules.banned_words, {"scheduler/a.cc": "throw 1;\n"}, "throw"),
    (rules.notes_to_self, {"docs/a.md": "TODO: write\n"}, "TODO"),
    (rules.file_lengths, {"base/a.cc": "x\n" * 501}, "501 lines"),
    (rules.file_lengths, {"base/a.cc": "x\n" * 500}, None),
    (rules.function_lengths, {"base/a.cc": LONG_FUNCTION}, "a function of 84 lines"),
    (rules.function_lengths, {"base/a.cc": LONG_FUNCTION.replace("  a += b;\n" * 80, "")}, None),
    (rules.header_guards, {"base/a.h": "#pragma once\n"}, "#pragma once"),
    (rules.header_guards, {"base/b.h": GUARD.format("")}, "BATON_BASE_B_H_"),
    (rules.header_guards, {"base/a.h": GUARD.format("")}, None),
    (rules.plain_text, {"base/a.cc": "\tx\n"}, "tab"),
    (rules.plain_text, {"docs/a.md": "x \n"}, "white space"),
    (rules.plain_text, {"docs/a.md": "x"}, "newline"),
    (rules.no_private_paths, {"scripts/a": "cd /home/me/src\n"}, "/home/me/"),
    (rules.no_private_paths, {"docs/a.md": "see workers/root/x\n"}, None),
    (rules.dead_files, {"base/a.cc": "", "base/CMakeLists.txt": "baton_library(b SRCS aa.cc)\n"}, "in no CMake list"),
    (rules.dead_files, {"base/a.cc": "", "base/CMakeLists.txt": "baton_library(b SRCS a.cc)\n"}, None),
    (rules.dead_files, {"base/a.h": ""}, "included by nobody"),
    (rules.links, {"docs/a.md": "[b](b.md)\n"}, "leads nowhere"),
    (rules.links, {"docs/a.md": "[b](b.md#two-words) [c](../base) <x>\n", "docs/b.md": "# Two words\n", "base/x.h": ""},
     None),
    (rules.links, {"docs/a.md": "[b](b.md#three)\n", "docs/b.md": "# Two words\n"}, "no heading"),
    (rules.documents_are_reachable, {"docs/a.md": ""}, "no document links to it"),
    (rules.documents_are_reachable, {"docs/a.md": "", "README.md": "[a](docs/a.md)\n"}, None),
]  # fmt: skip


def run():
    rules.LONG_FILES.clear()  # the tree's own exceptions have no place in planted trees
    rules.LONG_FUNCTIONS.clear()
    failures = []
    for number, (rule, tree, expected) in enumerate(CASES):
        problems = list(rule(tree))
        right = len(problems) == 1 and expected in problems[0] if expected else not problems
        if not right:
            failures.append(f"case {number}, {rule.__name__}: expected {expected!r}, got {problems}")
    uncovered = [rule.__name__ for rule in rules.ALL if rule not in {case[0] for case in CASES}]
    failures += [f"{name}: no case" for name in uncovered]
    print(f"{len(CASES)} cases, {len(failures)} failures")
    return failures
