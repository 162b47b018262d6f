#!/usr/bin/env python3
"""Runs the `baton` binary as a person would: help, mistakes, check and generate.

    command_test.py BATON MODEL_DIRECTORY
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

BATON, MODEL = sys.argv[1:3]
COMMANDS = ["serve", "router", "prefill", "decode", "generate", "chat", "bench", "check"]


def baton(*arguments, stdin="", environment=None):
    """(exit code, standard output, standard error)"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    run = subprocess.run(
        [BATON, *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=120,
        env=clean | (environment or {}),
    )  # fmt: skip
    return run.returncode, run.stdout, run.stderr


class CommandLine(unittest.TestCase):
    def test_help_names_every_command_and_each_has_its_own(self):
        code, out, err = baton("--help")
        self.assertEqual((code, err), (0, ""))
        for command in COMMANDS:
            self.assertRegex(out, rf"(?m)^  {command} +\w")
            code, own, err = baton(command, "--help")
            self.assertEqual((code, err), (0, ""), command)
            self.assertIn(f"Usage: baton {command} [flags]", own)
            self.assertLessEqual(max(map(len, own.splitlines())), 100, command)

    def test_mistakes_are_usage_errors_with_a_suggestion(self):
        self.assertEqual(baton("srve"), (2, "", 'error: unknown command "srve"; did you mean baton serve?\n'))
        code, out, err = baton("serve", "--prot=1", "--decode.max_sequence=2")
        self.assertEqual((code, out), (2, ""))
        self.assertIn("unknown flag --prot; did you mean --port?", err)
        self.assertIn("unknown flag --decode.max_sequence; did you mean --decode.max_sequences?", err)

    def test_every_serving_role_prints_the_configuration_it_would_use(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder, "baton.yaml")
            path.write_text("drain:\n  timeout_ms: 1234\n")
            for command in ["serve", "router", "prefill", "decode", "check"]:
                code, out, err = baton(command, "--config", path, "--print-config", "--log-level=debug",
                                       environment={"BATON_KERNELS_BACKEND": "reference"})
                self.assertEqual((code, err), (0, ""), command)
                self.assertRegex(out, rf"timeout_ms: 1234 +# {path}:2\n")
                self.assertRegex(out, r'backend: "reference" +# BATON_KERNELS_BACKEND\n')
                self.assertRegex(out, r'level: "debug" +# --log-level\n')

    def test_version_names_a_revision(self):
        code, out, _ = baton("--version")
        self.assertEqual(code, 0)
        self.assertRegex(out, r"^baton \d+\.\d+\.\d+ \(\w+\)\n$")


class Check(unittest.TestCase):
    def test_a_good_model_has_a_plan_and_no_problems(self):
        code, out, err = baton("check", "--model", MODEL)
        self.assertEqual((code, err), (0, ""))
        for line in ["memory plan", "  prefill ", "  decode ", "no problems found"]:
            self.assertIn(line, out)

    def test_every_problem_at_once(self):
        with tempfile.TemporaryDirectory() as folder:
            for file in pathlib.Path(MODEL).iterdir():
                if file.suffix in (".json", ".safetensors"):
                    shutil.copy(file, folder)
            config = pathlib.Path(folder, "config.json")
            config.write_text(config.read_text().replace('"kv_lora_rank": ', '"kv_lora_rank": 1', 1))
            pathlib.Path(folder, "tokenizer.json").write_text("{}")
            code, _, err = baton("check", "--model", folder, "--router.max_queue=0", "--log.format=xml")
        self.assertEqual(code, 1)
        for problem in ["router.max_queue: 0 is out of range", "log.format: \"xml\"", "checkpoint: ", "tokenizer: "]:
            self.assertIn(problem, err)

    def test_memory_that_cannot_hold_a_page(self):
        code, _, err = baton("check", "--model", MODEL, "--decode.memory_mb=1")
        self.assertEqual(code, 1)
        self.assertRegex(err, r"decode\.memory_mb: 1 MiB do not hold .* set it to \d+ or more")

    def test_a_missing_model(self):
        code, _, err = baton("check", "--model", "/nonexistent")
        self.assertEqual(code, 1)
        self.assertIn("model.path: no checkpoint in /nonexistent", err)


class Generate(unittest.TestCase):
    def ids(self, *arguments, **options):
        code, out, err = baton("generate", "--model", MODEL, "--max-tokens=12", "--ids", *arguments, **options)
        self.assertEqual(code, 0, err)
        return out.split(), err

    def test_the_prompt_from_anywhere_gives_the_same_tokens(self):
        prompt = "The file"
        expected, err = self.ids("--temperature=0", prompt)
        self.assertTrue(expected)
        self.assertRegex(err, r"TTFT [\d.]+ ms")
        self.assertEqual(self.ids("--temperature=0", stdin=prompt)[0], expected)
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(prompt)
            file.flush()
            self.assertEqual(self.ids("--temperature=0", "--prompt-file", file.name)[0], expected)
        self.assertEqual(self.ids("--temperature=0", "--prefill.chunk_tokens=1", prompt)[0], expected)

    def test_a_seed_repeats_a_draw(self):
        drawn, err = self.ids("--temperature=1", "--ignore-eos", "The file")
        seed = err.rsplit("seed ", 1)[1].strip()
        self.assertEqual(len(drawn), 12)
        self.assertEqual(self.ids("--temperature=1", "--ignore-eos", f"--seed={seed}", "The file")[0], drawn)

    def test_text_comes_with_its_prompt_when_asked(self):
        code, out, err = baton("generate", "--model", MODEL, "--echo", "--max-tokens=4", "--temperature=0", "The file")
        self.assertEqual(code, 0, err)
        self.assertTrue(out.startswith("The file"))

    def test_what_cannot_be_generated_is_an_error(self):
        code, _, err = baton("generate", "--model", MODEL, "--prompt-file=/nonexistent")
        self.assertEqual(code, 1)
        self.assertIn("/nonexistent", err)
        self.assertEqual(baton("generate", "--model", MODEL, "--temperature=-1", "x")[0], 2)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
