#!/usr/bin/env python3
"""House rules that a compiler does not check, over every file that git tracks.

    tests/tidy/tidy.py              checks the tree this script stands in
    tests/tidy/tidy.py --self-test  checks that each rule catches what it is for

Each rule is a function from {path: text} to problems ("path:line: what and how to mend it"). Rules and their lists of
exceptions stand in rules.py.
"""

import pathlib
import subprocess
import sys

import rules
import self_test

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tracked_paths() -> list[str]:
    """What git tracks and the working tree has; without git (an unpacked archive) every file outside build folders."""
    git = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if git.returncode == 0:
        paths = [path for path in git.stdout.decode().split("\0") if path]
    else:
        skipped = ("build", ".git", ".venv", ".cache")
        paths = [
            str(path.relative_to(ROOT))
            for path in ROOT.rglob("*")
            if path.is_file() and not path.relative_to(ROOT).parts[0].startswith(skipped)
        ]
    return sorted(path for path in paths if (ROOT / path).is_file())


def read_tree() -> dict[str, str | None]:
    """Text by path; None for what is not text."""
    tree = {}
    for path in tracked_paths():
        data = (ROOT / path).read_bytes()
        try:
            tree[path] = None if b"\0" in data else data.decode()
        except UnicodeDecodeError:
            tree[path] = None
    return tree


def main() -> int:
    if sys.argv[1:] == ["--self-test"]:
        problems = self_test.run()
    else:
        tree = read_tree()
        problems = [problem for rule in rules.ALL for problem in rule(tree)]
        print(f"{len(tree)} files, {len(rules.ALL)} rules, {len(problems)} problems")
    for problem in problems:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
