"""The rules of tidy.py. A tree is {path: text, or None for what is not text}; a problem is one line of text."""

import posixpath
import re

# --- What is what -----------------------------------------------------------------------------------------------

CODE = (".h", ".cc", ".cu")
FOLDERS = {
    "proto", "base", "scheduler", "wire", "kernels", "transport", "model", "prefill_worker", "decode_worker", "server",
    "tools", "tests",
}  # fmt: skip


def folder(path):
    return path.split("/", 1)[0]


def is_code(path):
    return path.endswith(CODE)


def is_production(path):
    return is_code(path) and folder(path) not in ("tests", "tools")


def code_files(tree):
    return [(path, text) for path, text in tree.items() if is_code(path) and text is not None]


def text_files(tree):
    return [(path, text) for path, text in tree.items() if text is not None]


def lines_of(text):
    return enumerate(text.split("\n"), start=1)


def without_comments_and_strings(text):
    """The same text with comments and string contents blanked, line numbers kept."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|R"(?P<d>[^(\n]*)\(.*?\)(?P=d)"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.S
    )
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


# --- Who may include whom (docs/architecture.md, "Folders, low to high") -----------------------------------------

ARROWS = {
    "base": {"base"},
    "scheduler": {"base", "scheduler"},
    "wire": {"base", "scheduler", "proto", "wire"},
    "kernels": {"base", "kernels"},
    "transport": {"base", "transport"},
    "model": {"base", "kernels", "model"},
    "prefill_worker": {"scheduler", "wire", "model", "transport", "proto", "base", "prefill_worker"},
    "decode_worker": {"scheduler", "wire", "model", "transport", "proto", "base", "decode_worker"},
    "server": {"scheduler", "wire", "transport", "proto", "base", "server"},
}
# Single headers beyond the folders above.
EXTRA_HEADERS = {
    "model": {"transport/collectives.h", "scheduler/expert_placement.h", "scheduler/expert_routing.h", "scheduler/expert_switch.h",
              "scheduler/types.h"},
    "server": {"model/tokenizer.h"},
}
# The composition roots: they put the parts together, so they see them.
COMPOSITION_ROOT = re.compile(r"server/(embedded|main)[a-z_]*\.(cc|h)$")
COMPOSITION_ROOT_FOLDERS = {"prefill_worker", "decode_worker", "model", "kernels"}

# Headers of which the include path chooses one of several (kernels/cuda/device.h), included with <>.
CHOSEN_HEADERS = ("/device_inline.h", "/device_macros.h")

# Foreign headers that may stand in quotes.
FOREIGN_QUOTED = ("absl/", "gtest/", "gmock/", "nlohmann/", "google/", "benchmark/", "xxhash.h")

INCLUDE = re.compile(r'^\s*#\s*include\s+(?:"([^"]+)"|<([^>]+)>)')


def includes(text):
    for number, line in lines_of(text):
        match = INCLUDE.match(line)
        if match:
            yield number, match[1], match[2]


def include_arrows(tree):
    for path, text in code_files(tree):
        home = folder(path)
        for number, quoted, _ in includes(text):
            if quoted is None:
                continue
            target = folder(quoted)
            if quoted.startswith(FOREIGN_QUOTED):
                continue
            if target not in FOLDERS or "/" not in quoted:
                yield f'{path}:{number}: include "{quoted}": name it from the root of the tree, or with <> if foreign'
                continue
            if home not in ARROWS or target in ARROWS[home] or quoted in EXTRA_HEADERS.get(home, ()):
                continue
            if home == "base" and quoted == "proto/baton/v1/config.pb.h":
                continue
            if COMPOSITION_ROOT.match(path) and target in COMPOSITION_ROOT_FOLDERS:
                continue
            yield f"{path}:{number}: {home}/ may not include {quoted} (docs/architecture.md)"


# Foreign headers with a home: (what, the only paths that may include it).
CONFINED = [
    (r".*\.pb\.h$", r"(server|wire|prefill_worker|decode_worker|tests|tools)/|base/config"),
    (r"(grpcpp|grpc)/", r"(server|wire|prefill_worker|decode_worker|tests|tools)/"),
    (r"prometheus/", r"base/metrics\.cc$"),
    (r"spdlog/", r"base/log\.cc$"),
    (r"yaml-cpp/", r"base/config\.cc$|tests/|tools/"),
    (r"boost/", r"(server|tests|tools)/"),
    (r"ares\.h$", r"server/dns_resolver\.cc$"),
    (r"(ucp|uct|ucs)/", r"transport/ucx/"),
    (r"nccl\.h", r"transport/nccl/|tests/simt/|tests/kernels/cuda_libraries_test"),
    (r"cuda|cublas|vector_types", r"(kernels/cuda|transport/nccl|tests/(simt|kernels|transport))/"),
    (r"(thread|future)$", r"base/|tests/"),
    (r"(immintrin|x86intrin|arm_neon)\.h$", r"(kernels|tests/kernels)/|base/(thread_pool|cpu)"),
]


def confined_headers(tree):
    for path, text in code_files(tree):
        for number, quoted, angled in includes(text):
            header = quoted or angled
            for pattern, home in CONFINED:
                if re.match(pattern, header) and not re.match(home, path):
                    yield f"{path}:{number}: {header} may only be included by {home}"


# --- Words with a home ------------------------------------------------------------------------------------------

# (what, where it is allowed, what to use instead)
BANNED = [
    (r"\bsystem_clock\b|\bCLOCK_REALTIME\b", r"base/log\.cc$", "an injected Clock"),
    (r"\bsteady_clock\b|\bhigh_resolution_clock\b", r"base/|tests/|tools/", "an injected Clock"),
    (r"\b(sleep|usleep|nanosleep|sleep_for|sleep_until)\s*\(", r"base/|tests/(e2e|server)/", "a BoundedQueue's WaitFor or a condition"),
    (r"\bstd::(j?thread|async)\b|\bpthread_create\b", r"base/|tests/", "Thread of base/thread.h"),
    (r"\b(secure_)?getenv\s*\(", r"base/config|tests/", "a field in config.proto"),
    (r"\b(exit|_exit|_Exit|quick_exit)\s*\(", r"tests/", "a returned status"),
    (r"\b(std::)?abort\s*\(", r"base/check\.cc$|tests/", "BATON_CHECK"),
    (r"(?<![\w_])assert\s*\(", r"$^", "BATON_CHECK"),
    (r"\bget_instance\b|\bGetInstance\b|\bInstance\s*\(\)", r"tests/", "an injected object"),
    (r"\b(std::)?s?rand\s*\(", r"$^", "Rng of base/random.h"),
    (r"\busing namespace std\b", r"$^", "qualified names"),
    (r"#\s*define\s+(private|protected)\b", r"$^", "a public seam"),
    (r"\b(try|catch)\b\s*[({]|\bthrow\b", r"base/config\.cc$|tests/|tools/", "absl::Status"),
    (r"\bDISABLED_|\bGTEST_SKIP\b", r"$^", "a test that runs, or none"),
]
# A library that throws is caught where it is called; nothing else catches.
CATCHES_FOREIGN = r"(model|server|transport)/"
# In comments as well: a note to oneself is not documentation.
NOTES = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def banned_words(tree):
    for path, text in code_files(tree):
        code = without_comments_and_strings(text)
        for pattern, home, instead in BANNED:
            if re.match(home, path):
                continue
            for match in re.finditer(pattern, code):
                word = match[0].strip()
                if word.startswith(("try", "catch")) and re.match(CATCHES_FOREIGN, path):
                    continue
                number = code.count("\n", 0, match.start()) + 1
                yield f"{path}:{number}: {word} is banned here; use {instead}"


def notes_to_self(tree):
    for path, text in text_files(tree):
        if path.startswith(("tests/tidy/", "tests/data/", "models/")) or path == "LICENSE":
            continue
        for number, line in lines_of(text):
            match = NOTES.search(line)
            if match:
                yield f"{path}:{number}: {match[0]}: do it, or file an issue"


# --- Lengths ----------------------------------------------------------------------------------------------------

SOFT_FILE_LINES = 500
HARD_FILE_LINES = 700
# Files over the soft limit, with the most lines they may have. Entries only ever shrink or go.
LONG_FILES = {}

FUNCTION_LINES = 75
# "path: first words of the signature" -> lines. Entries only ever shrink or go.
LONG_FUNCTIONS = {}


def file_lengths(tree):
    for path, text in code_files(tree):
        count = text.count("\n")
        allowed = LONG_FILES.get(path, SOFT_FILE_LINES)
        if count > HARD_FILE_LINES:
            yield f"{path}: {count} lines; no file may have more than {HARD_FILE_LINES}: split it"
        elif count > allowed:
            yield f"{path}: {count} lines; at most {allowed}: split it"
        elif path in LONG_FILES and count <= SOFT_FILE_LINES:
            yield f"{path}: {count} lines: take it off LONG_FILES in tests/tidy/rules.py"
        elif path in LONG_FILES and allowed - count > 20:
            yield f"{path}: {count} lines: lower its entry in LONG_FILES in tests/tidy/rules.py to that"
    for path in LONG_FILES:
        if path not in tree:
            yield f"{path}: not there any more: take it off LONG_FILES in tests/tidy/rules.py"


ENDS_OPENING = re.compile(r"\)( const| noexcept| override| final| try|\s*->.*)* \{$|^\s*:.*\{$|[})],? \{$")
NOT_A_FUNCTION = re.compile(
    r"\s*(\}|namespace|class|struct|enum|union|if|for|while|switch|do|else|return|static const|const|#|TEST_P?\b.*\\$)"
)


def functions(text):
    """(first line, its text, lines) of each function, by clang-format's layout: it closes at its opening's indent."""
    lines = without_comments_and_strings(text).split("\n")
    number = 0
    while number < len(lines):
        if not ENDS_OPENING.search(lines[number]):
            number += 1
            continue
        first = number  # of the statement: back to the end of the one before
        while first > 0 and lines[first - 1].strip() and not lines[first - 1].rstrip().endswith((";", "{", "}", ":")):
            first -= 1
        indent = len(lines[first]) - len(lines[first].lstrip())
        close = " " * indent + "}"
        end = next((i for i in range(number + 1, len(lines)) if lines[i] in (close, close + ";")), None)
        if indent > 2 or end is None or NOT_A_FUNCTION.match(lines[first]):
            number += 1
            continue
        yield first + 1, text.split("\n")[first].strip(), end - first + 1
        number = end


def function_lengths(tree):
    for path, text in code_files(tree):
        for number, name, count in functions(text):
            listed = next((v for k, v in LONG_FUNCTIONS.items() if k.split(": ")[0] == path
                           and name.startswith(k.split(": ")[1])), None)  # fmt: skip
            if count > (listed or FUNCTION_LINES):
                yield f"{path}:{number}: a function of {count} lines; at most {listed or FUNCTION_LINES}: split it ({name})"


# --- Form of files ----------------------------------------------------------------------------------------------


def header_guards(tree):
    for path, text in code_files(tree):
        if not path.endswith(".h"):
            continue
        guard = "BATON_" + re.sub(r"[^A-Z0-9]", "_", path.upper()) + "_"
        if "#pragma once" in text:
            yield f"{path}: #pragma once: use #ifndef {guard}"
        elif f"#ifndef {guard}\n#define {guard}\n" not in text:
            # *_isa.h files are compiled once for each instruction set, on purpose.
            if not path.endswith("_isa.h"):
                yield f"{path}: the include guard must be {guard}"


def plain_text(tree):
    for path, text in text_files(tree):
        if path.startswith(("tests/data/", "models/")) or path == "LICENSE":
            continue
        if text and not text.endswith("\n"):
            yield f"{path}: no newline at the end"
        for number, line in lines_of(text):
            if "\t" in line and not path.endswith((".mk", ".svg")):
                yield f"{path}:{number}: a tab; use spaces"
            if "\r" in line:
                yield f"{path}:{number}: a carriage return"
            if line != line.rstrip():
                yield f"{path}:{number}: white space at the end of the line"


# Paths of somebody's machine, and registries that scripts must not name: both work on one machine only.
PRIVATE = re.compile(
    r"(?<![\w.~/-])/(work|root|home/\w+|Users/\w+)/|/tmp/(team|bash_jobs)"
    r"|\b(pypi\.org|pythonhosted\.org|deb\.debian\.org|docker\.io|ghcr\.io|quay\.io|registry\.k8s\.io|registry\.npmjs)"
)


def no_private_paths(tree):
    for path, text in text_files(tree):
        if path.startswith(("tests/data/", "tests/tidy/", "models/")) or path == "LICENSE":
            continue
        for number, line in lines_of(text):
            match = PRIVATE.search(line)
            if match:
                yield f"{path}:{number}: {match[0]} is a place on one machine"


# --- Nothing dead, nothing dangling -----------------------------------------------------------------------------


def dead_files(tree):
    build = "\n".join(text for path, text in text_files(tree) if path.endswith(("CMakeLists.txt", ".cmake")))
    named = set(re.findall(r"[\w.-]+", build))
    # By #include or, where a macro includes it, by its quoted path.
    included = {header for _, text in code_files(tree) for header in re.findall(r'"([\w./]+\.h)"', text)}
    for path in tree:
        name = posixpath.basename(path)
        # tests/x/a_test.cc may stand in a list as "a", to which a loop adds the rest.
        stem = re.sub(r"(_test)?\.\w+$", "", name)
        if path.endswith((".cc", ".cu")) and not named & {name, name[:-3], stem}:
            yield f"{path}: in no CMake list"
        if path.endswith(".proto") and name[: -len(".proto")] not in named:
            yield f"{path}: in no CMake list"
        if path.endswith(".h") and path not in included and not path.endswith(CHOSEN_HEADERS):
            yield f"{path}: included by nobody"


LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text):
    """GitHub's anchors of a document's headings."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M):
        words = re.sub(r"[`*_]|\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip())
        found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


def links(tree):
    places = set(tree)
    for path in tree:
        while (path := posixpath.dirname(path)) and path not in places:
            places.add(path)
    for path, text in text_files(tree):
        if not path.endswith(".md"):
            continue
        for number, line in lines_of(text):
            for target in LINK.findall(re.sub(r"`[^`]*`", "", line)):
                if re.match(r"[a-z]+:", target):
                    continue
                file, _, anchor = target.partition("#")
                place = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
                if place not in places:
                    yield f"{path}:{number}: the link {target} leads nowhere"
                elif anchor and tree.get(place) is not None and anchor not in anchors(tree[place]):
                    yield f"{path}:{number}: {place} has no heading for #{anchor}"


def documents_are_reachable(tree):
    """Every document is linked from another one."""
    linked = set()
    for path, text in text_files(tree):
        if path.endswith(".md"):
            for target in LINK.findall(text):
                place = posixpath.normpath(posixpath.join(posixpath.dirname(path), target.partition("#")[0]))
                linked |= {place, posixpath.join(place, "README.md")}
    for path in tree:
        if re.match(r"docs/.*\.(md|svg|png)$", path) and path not in linked:
            yield f"{path}: no document links to it"


ALL = [
    include_arrows, confined_headers, banned_words, notes_to_self, file_lengths, function_lengths, header_guards,
    plain_text, no_private_paths, dead_files, links, documents_are_reachable,
]  # fmt: skip
