#!/usr/bin/env python3
"""Writes model/tokenizer_unicode_delta.cc: what the oracle's Unicode knows beyond PCRE2's.

The `tokenizers` package matches with Oniguruma (Unicode 16), Debian 12's PCRE2 10.42 has Unicode 14.
For every property that the tokenizer lets patterns use, this asks both engines about every code point
and lists those that only the first counts in. Rerun when either of them moves:

  .venv/bin/python tools/make_golden/unicode_delta.py > model/tokenizer_unicode_delta.cc
"""
import ctypes

from tokenizers import Regex, pre_tokenizers

PROPERTIES = (
    "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Alphabetic "
    "sc:Han sc:Hiragana sc:Katakana sc:Hangul sc:Latin sc:Greek sc:Cyrillic sc:Arabic sc:Hebrew sc:Thai "
    "sc:Devanagari"
).split()
EVERY = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF)
PCRE2_UTF, PCRE2_UCP = 0x00080000, 0x00020000


def oracle_members(name):
    """Code points that Oniguruma counts into \\p{name}."""
    split = pre_tokenizers.Split(Regex(r"\p{%s}+" % name.removeprefix("sc:")), "removed")
    members = set()
    for start in range(0, len(EVERY), 1 << 16):
        chunk = EVERY[start : start + (1 << 16)]
        outside = set()
        for _, (a, b) in split.pre_tokenize_str(chunk):
            outside.update(chunk[a:b])
        members.update(c for c in chunk if c not in outside)
    return members


def pcre_members(name):
    """Code points that PCRE2 counts into \\p{name}."""
    lib = ctypes.CDLL("libpcre2-8.so.0")
    for function in ("pcre2_compile_8", "pcre2_match_data_create_8", "pcre2_get_ovector_pointer_8"):
        getattr(lib, function).restype = ctypes.c_void_p
    pattern = (r"\p{%s}+" % name).encode()
    error, offset = ctypes.c_int(), ctypes.c_size_t()
    code = ctypes.c_void_p(
        lib.pcre2_compile_8(
            pattern, ctypes.c_size_t(len(pattern)), PCRE2_UTF | PCRE2_UCP, ctypes.byref(error), ctypes.byref(offset), None
        )
    )
    assert code.value, (name, error.value)
    data = ctypes.c_void_p(lib.pcre2_match_data_create_8(1, None))
    subject = EVERY.encode()
    members, at = set(), 0
    while lib.pcre2_match_8(code, subject, ctypes.c_size_t(len(subject)), ctypes.c_size_t(at), 0, data, None) >= 0:
        span = ctypes.cast(lib.pcre2_get_ovector_pointer_8(data), ctypes.POINTER(ctypes.c_size_t))
        members.update(subject[span[0] : span[1]].decode())
        at = span[1]
    return members


def ranges(members):
    out = []
    for c in sorted(map(ord, members)):
        if out and out[-1][1] == c - 1:
            out[-1][1] = c
        else:
            out.append([c, c])
    return out


def main():
    print("// Made by tools/make_golden/unicode_delta.py; do not edit.")
    print()
    print('#include "model/tokenizer_unicode_delta.h"')
    print()
    print("namespace baton::model {")
    print("namespace {")
    print()
    print("// clang-format off")
    print("constexpr UnicodeDelta kDelta[] = {")
    for name in PROPERTIES:
        for first, last in ranges(oracle_members(name) - pcre_members(name)):
            print('    {"%s", 0x%X, 0x%X},' % (name.removeprefix("sc:"), first, last))
    print("};")
    print("// clang-format on")
    print()
    print("}  // namespace")
    print()
    print("std::span<const UnicodeDelta> UnicodeDeltas() { return kDelta; }")
    print()
    print("}  // namespace baton::model")


if __name__ == "__main__":
    main()
