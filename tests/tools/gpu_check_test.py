#!/usr/bin/env python3
"""tools/gpu_check without a GPU, and its reading of ctest's reports.

    gpu_check_test.py BUILD_FOLDER
"""

import importlib.machinery
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

BUILD = pathlib.Path(sys.argv[1])
SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tools/gpu_check"


def load():
    loader = importlib.machinery.SourceFileLoader("gpu_check", str(SCRIPT))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
    loader.exec_module(module)
    return module


class WithoutAGpu(unittest.TestCase):
    def test_is_an_error_that_says_so(self):
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder, "out.json")
            done = subprocess.run(
                [SCRIPT, "--skip-build", f"--preset={BUILD.name}", f"--json={out}"], capture_output=True, text=True,
                env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
            self.assertEqual(done.returncode, 1, done.stderr)
            self.assertRegex(done.stderr, r"(?m)^error: not run: .*kernels_gpu_test.*; a check without a GPU is none:$")
            self.assertIn("SKIPPED, no test was run: no GPU can be used: ", done.stderr)
            self.assertFalse(out.exists())


class Reports(unittest.TestCase):
    """ctest is replaced by a report that it might write."""

    def results(self, cases):
        def ctest(command, **_):
            report = pathlib.Path(command[command.index("--output-junit") + 1])
            report.write_text(f'<testsuite name="t">{cases}</testsuite>')

        check = load()
        self.failure = check.Failure
        with mock.patch.object(check, "run", ctest):
            return check.test_results("cuda")

    def test_all_passed(self):
        passed = '<testcase name="a" time="1.5" status="run"/><testcase name="b" time="2" status="run"/>'
        self.assertEqual(self.results(passed), {"a": 1.5, "b": 2.0})

    def test_no_tests_are_an_error(self):
        with self.assertRaisesRegex(Exception, "no tests with the label gpu in preset cuda; build it first"):
            self.results("")

    def test_failed_and_skipped_ones_are_named(self):
        for what, expected in (("failure", "failed: b"), ("skipped", "not run: b")):
            with self.assertRaises(Exception) as raised:
                self.results(f'<testcase name="a" time="1"/><testcase name="b" time="1"><{what}/></testcase>')
            self.assertIsInstance(raised.exception, self.failure)
            self.assertIn(expected, str(raised.exception))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1] + sys.argv[2:], verbosity=2)
