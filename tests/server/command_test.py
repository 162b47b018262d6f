#!/usr/bin/env python3
"""Runs the `baton` binary as a person would: help, mistakes, check and generate.

    command_test.py BATON MODEL_DIRECTORY
"""

import os
import pathlib
import shutil
import socket
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

    def test_version_names_a_revision_and_backends(self):
        code, out, _ = baton("--version")
        self.assertEqual(code, 0)
        self.assertRegex(out, r"^baton \d+\.\d+\.\d+ \(\w+\)\nbackends: cpu, reference")


class Failures(unittest.TestCase):
    """One line that says what is wrong and what to do, nothing else."""

    def only_error(self, arguments, expected, code=1, **options):
        actual, out, err = baton(*arguments, **options)
        self.assertEqual((actual, out), (code, ""), err)
        lines = [line for line in err.splitlines() if not line.endswith(" ...")]  # progress
        self.assertEqual(len(lines), 1, err)
        self.assertRegex(lines[0], expected)

    def test_no_server(self):
        expected = r"^error: no server at localhost:1 \(Connection refused\); start one with: baton serve$"
        for command in (["complete", "hi"], ["chat"], ["bench", "serve"]):
            self.only_error([*command, "--server=localhost:1"], expected)

    def test_a_server_without_a_port_or_a_name(self):
        self.only_error(["complete", "--server=here", "hi"], r'^error: --server: "here" is not host:port; ', code=2)
        self.only_error(["complete", "--server=no.such.invalid:1", "hi"],
                        r"^error: no server at no\.such\.invalid:1 \(")

    def test_a_taken_port(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            address = "127.0.0.1:%d" % taken.getsockname()[1]
            expected = rf"^error: cannot listen .*{address}: Address already in use; choose another port, or port 0"
            serve = ["serve", "--model", MODEL, "--log-level=warning"]
            self.only_error([*serve, f"--server.grpc_address={address}", "--http-port=0"], expected)
            self.only_error([*serve, f"--server.http_address={address}", "--port=0"], expected)

    def test_an_address_of_another_machine(self):
        self.only_error(["decode", "--model", MODEL, "--decode.address=203.0.113.7:1",
                         "--handoff.ucx.listen_ip=127.0.0.1"],
                        r"^error: cannot listen on 203\.0\.113\.7:1: .*; give an address of this machine, or 0\.0\.0\.0")

    def test_a_model_that_is_not_there(self):
        for command in (["serve"], ["decode"], ["generate", "hi"]):
            self.only_error([*command, "--model=/nonexistent"],
                            r"^error: model\.path: no checkpoint in /nonexistent .*; name a Hugging Face checkpoint")

    def test_a_router_without_workers(self):
        code, _, err = baton("router", "--model", MODEL)
        self.assertEqual(code, 2)
        for role in ("prefill", "decode"):
            self.assertIn(f"error: router.{role}_workers: a router needs at least one; "
                          f"--router.{role}_workers=HOST:PORT", err)

    def test_what_is_not_configuration(self):
        code, _, err = baton("serve", "--config=/", "--log.level=loud")
        self.assertEqual(code, 2)
        self.assertEqual(len(err.splitlines()), 3, err)
        self.assertIn("/: cannot be read: Is a directory", err)

    def test_what_is_not_given(self):
        self.only_error(["complete"], r"^error: no PROMPT given; baton complete \[flags\] PROMPT$", code=2)
        self.only_error(["bench", "srve"], r'^error: "srve" cannot be measured; ', code=2)
        self.only_error(["serve", "--prot", "1"], r"^error: unknown flag --prot; did you mean --port\?$", code=2)


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
