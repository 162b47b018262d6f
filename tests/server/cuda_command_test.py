#!/usr/bin/env python3
"""What `baton` says of its CUDA backend, as a person would ask.

    cuda_command_test.py absent|native|emulated|gpu BATON MODEL_DIRECTORY

native: the CUDA backend on a machine that is taken for one without a GPU, by CUDA_VISIBLE_DEVICES; gpu: on one that must
have a GPU, where it serves (exit code 77: it has none).
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

GPU, BATON, MODEL = sys.argv[1:4]
COMPUTING = (["generate", "hi"], ["serve", "--port=127.0.0.1:0", "--http-port=127.0.0.1:0"],
             ["prefill", "--prefill.address=127.0.0.1:0"], ["decode", "--decode.address=127.0.0.1:0"],
             ["bench", "serve", "--streams=1"])  # fmt: skip


def baton(*arguments):
    """(exit code, standard output, standard error)"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BATON_")}
    run = subprocess.run([BATON, *arguments], input="", capture_output=True, text=True, timeout=300,
                         env=clean | {"CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    return run.returncode, run.stdout, run.stderr


class CudaCommand(unittest.TestCase):
    def test_version_says_whether_there_is_cuda_and_for_what(self):
        code, out, err = baton("--version")
        self.assertEqual((code, err), (0, ""))
        backends = re.fullmatch(r"baton .*\nbackends: cpu, reference(.*)\n", out)
        self.assertIsNotNone(backends, out)
        version = r"\d+\.\d+(\.\d+)?"
        self.assertRegex(backends[1], {
            "absent": r"^$",
            "native": rf"^, cuda \(sm_[0-9]+a?(, sm_[0-9]+a?)*; CUDA {version}, cuBLASLt {version}, NCCL {version}\)$",
            "gpu": r"^, cuda \(sm_",
            "emulated": r"^, cuda \(emulated sm_89, sm_90a, sm_100a\)$",
        }[GPU])  # fmt: skip

    def test_device_stands_in_the_help_of_all_that_compute(self):
        for command in ("serve", "prefill", "decode", "generate", "bench"):
            self.assertIn("--kernels.backend, --device TEXT", baton(command, "--help")[1], command)

    @unittest.skipIf(GPU in ("emulated", "gpu"), "has a GPU")
    def test_without_a_gpu_every_command_says_what_is_missing_and_the_fix(self):
        why = {
            "absent": r"this binary was built without the CUDA backend.*; build the preset `cuda` \(cmake --preset cuda "
                      r"&& cmake --build --preset cuda\).* cpu.*",
            # Workers look for the GPU of their hand-offs first.
            "native": r"(no GPU can be used: .*; check `nvidia-smi`, .*docker run --gpus all\), or compute on the CPU "
                      r"\(--device cpu\)|nccl: .*; check `nvidia-smi`, .*)",
        }[GPU]  # fmt: skip
        for command in COMPUTING:
            code, out, err = baton(*command, "--device", "cuda", f"--model={MODEL}")
            self.assertEqual((code, out), (1, ""), (command, err))
            lines = [line for line in err.splitlines() if not line.endswith(" ...")]  # progress
            self.assertEqual(len(lines), 1, err)
            self.assertRegex(lines[0], f"^error: {why}$")

    def test_the_cpu_can_be_chosen(self):
        code, out, err = baton("generate", "--device=cpu", "--max-tokens=1", "--temperature=0", "--ids",
                               f"--model={MODEL}", "The command")
        self.assertEqual(code, 0, err)
        self.assertRegex(out, r"^\d+\n?$")


@unittest.skipIf(GPU not in ("emulated", "gpu"), "has no GPU")
class Serving(unittest.TestCase):
    """`baton serve --device cuda`, all roles: prompts computed, latents handed over and tokens decoded on the GPU."""

    PROMPTS = ("The command", "The name of the file is")
    TOKENS = "4"

    def serve(self, *flags, environment=None):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        ports, self.log = pathlib.Path(folder, "ports"), pathlib.Path(folder, "log")
        with self.log.open("wb") as log:
            self.server = subprocess.Popen(
                [BATON, "serve", "--device", "cuda", f"--model={MODEL}", "--port=127.0.0.1:0", "--http-port=127.0.0.1:0",
                 "--prefill.memory_mb=64", "--decode.memory_mb=64", f"--port-file={ports}", *flags],
                stderr=log, env=os.environ | (environment or {}))  # fmt: skip
        self.addCleanup(self.server.wait)
        self.addCleanup(self.server.kill)
        for _ in range(600):
            if ports.exists() or self.server.poll() is not None:
                break
            time.sleep(0.1)
        self.assertTrue(ports.exists(), self.log.read_text())
        self.ports = dict(line.split("=") for line in ports.read_text().split())

    def http(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['http']}{path}", timeout=10) as response:
            return response.read().decode()

    def test_greedy_tokens_are_the_cpus(self):
        self.serve()
        self.expect_the_tokens_of_the_cpu()

    @unittest.skipIf(GPU == "gpu", "the machine may have more memory")
    def test_a_plan_is_compared_with_the_gpu(self):
        code, out, err = baton("check", "--device=cuda", f"--model={MODEL}", "--decode.memory_mb=4096")
        self.assertEqual(code, 1, err)
        self.assertRegex(err, r"1 problem:\n  - decode\.memory_mb: a rank needs 4\.0 GiB, its GPU has 2\.0 GiB; "
                              r"set it to 0, which takes what is left, or raise decode\.ranks\n")  # fmt: skip
        code, out, err = baton("check", "--device=cuda", f"--model={MODEL}")
        self.assertEqual((code, err), (0, ""))
        self.assertRegex(out, r"(?m)^  decode GPU +1\.\d GiB: of it 14\.3 MiB weights$")

    @unittest.skipIf(GPU == "gpu", "the machine may have fewer GPUs")
    def test_ranks_on_gpus_of_their_own(self):
        self.serve("--prefill.ranks=2", "--decode.ranks=2", "--decode.redundant_experts=4", "--group.timeout_ms=60000",
                   environment={"SIMT_DEVICES": "4"})  # fmt: skip
        self.expect_the_tokens_of_the_cpu()

    @unittest.skipIf(GPU == "gpu", "the machine may have more GPUs")
    def test_more_ranks_than_gpus_are_refused(self):
        code, out, err = baton("serve", "--device=cuda", f"--model={MODEL}", "--prefill.ranks=2", "--decode.ranks=2")
        self.assertEqual((code, out), (1, ""), err)
        self.assertIn("error: each rank needs a GPU of its own: 2 of prefill and 2 of decode want 4, and this process sees 2; "
                      "lower --prefill.ranks or --decode.ranks", err)  # fmt: skip

    def expect_the_tokens_of_the_cpu(self):
        self.assertEqual(self.http("/ready"), "ready\n")
        flags = ("--max-tokens", self.TOKENS, "--temperature", "0")
        clients = [subprocess.Popen([BATON, "complete", "--server", f"127.0.0.1:{self.ports['grpc']}", *flags, prompt],
                                    stdout=subprocess.PIPE, text=True) for prompt in self.PROMPTS]  # fmt: skip
        answers = [client.communicate(timeout=300)[0] for client in clients]
        self.assertEqual([client.returncode for client in clients], [0] * len(clients), self.log.read_text())
        for prompt, answer in zip(self.PROMPTS, answers):
            code, expected, err = baton("generate", "--device=cpu", *flags, f"--model={MODEL}", prompt)
            self.assertEqual(code, 0, err)
            self.assertEqual(answer, expected, prompt)
        self.assertRegex(self.http("/metrics"), rf"(?m)^baton_output_tokens_total(\{{.*\}})? {2 * int(self.TOKENS)}$")
        self.server.send_signal(signal.SIGTERM)
        self.assertEqual(self.server.wait(timeout=120), 0, self.log.read_text())
        self.assertNotIn("simt:", self.log.read_text())


if __name__ == "__main__":
    if GPU == "gpu":
        there = subprocess.run([BATON, "generate", "--device=cuda", f"--model={MODEL}", "--max-tokens=1", "hi"],
                               capture_output=True, text=True)  # fmt: skip
        if "no GPU can be used" in there.stderr:
            print("SKIPPED, no test was run:", there.stderr)
            sys.exit(77)
    unittest.main(argv=sys.argv[:1], verbosity=2)
