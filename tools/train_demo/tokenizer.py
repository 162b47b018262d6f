"""Trains the demo model's byte-level BPE and writes it in DeepSeek-V3's tokenizer.json form.

    python tokenizer.py --work WORK_DIR --out MODEL_DIR [--vocab 4096]

reads WORK_DIR/train.txt; writes MODEL_DIR/tokenizer.json, MODEL_DIR/tokenizer_config.json and the encoded corpus
WORK_DIR/{train,heldout}.u16 (little-endian uint16 ids, each page preceded by the begin-of-sentence token).
"""

import argparse
import json
import pathlib

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from corpus import PAGE_SEPARATOR

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"

# The three split patterns of DeepSeek-V3's pre-tokenizer, in order.
DIGITS = r"\p{N}{1,3}"
CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
WORDS = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"""
         r""" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""")

CHAT_TEMPLATE = (
    "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] + eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}")


def train_tokenizer(text_file, vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(DIGITS), "isolated"),
        pre_tokenizers.Split(Regex(CJK), "isolated"),
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(t, normalized=False, special=True) for t in (BOS, EOS, PAD)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - 2, special_tokens=special, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(text_file.read_text(encoding="utf-8").split(PAGE_SEPARATOR), trainer)
    # As in DeepSeek-V3, the chat tokens are ordinary added tokens at the end of the vocabulary.
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in (USER, ASSISTANT)])
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=True, trim_offsets=False, use_regex=True)
    return tokenizer


def write_config(out, max_length):
    def token(content):
        return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": True, "rstrip": False,
                "single_word": False}
    config = {"add_bos_token": True, "add_eos_token": False, "bos_token": token(BOS), "clean_up_tokenization_spaces": False,
              "eos_token": token(EOS), "legacy": True, "model_max_length": max_length, "pad_token": token(EOS),
              "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "LlamaTokenizerFast",
              "chat_template": CHAT_TEMPLATE}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--vocab", type=int, default=4096)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(args.work / "train.txt", args.vocab)
    assert tokenizer.get_vocab_size() == args.vocab, tokenizer.get_vocab_size()
    tokenizer.save(str(args.out / "tokenizer.json"))
    write_config(args.out, 2048)
    bos = tokenizer.token_to_id(BOS)
    for part in ("train", "heldout"):
        text = (args.work / f"{part}.txt").read_text(encoding="utf-8")
        pages = text.split(PAGE_SEPARATOR)
        ids = np.concatenate([np.array([bos] + e.ids, np.uint16) for e in tokenizer.encode_batch(pages)])
        assert all(tokenizer.decode(e.ids) == p for p, e in zip(pages[:50], tokenizer.encode_batch(pages[:50])))
        ids.tofile(args.work / f"{part}.u16")
        print(f"{part}: {len(ids)} tokens, {len(text.encode()) / len(ids):.3f} bytes per token")


if __name__ == "__main__":
    main()
