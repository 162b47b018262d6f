#!/usr/bin/env python3
"""What ptxas says of the CUDA backend's kernels, against what is written down.

    ptxas_test.py --nvcc NVCC --folder BUILD/kernels/cuda FILE.cu ...           checks
    ptxas_test.py --nvcc NVCC --folder BUILD/kernels/cuda --update FILE.cu ...  rewrites the table

Fails for a kernel that spills or has a stack frame (unless ALLOWED says why it may), where ptxas had to mend or to serialize
the matrix instructions of warpgroups, and where registers or static shared memory differ from docs/kernels/cuda-registers.md. Another release of nvcc allocates other registers: with one, only spills
are checked.
"""

import argparse
import pathlib
import re
import subprocess
import sys

TABLE = pathlib.Path(__file__).resolve().parents[2] / "docs/kernels/cuda-registers.md"
UPDATE = "`ninja -C build/release update_cuda_registers`"

# Kernels that may have a stack frame or spill, by the table's name: why.
ALLOWED: dict[str, str] = {}

HEAD = """# Registers of the CUDA kernels

Registers of a thread, and bytes of static shared memory where a kernel has any, as ptxas reports them. `kernels_ptxas_test`
compares; {update} rewrites this file. Nothing spills.

Compiler: {release}

| file | kernel | {architectures} |
|---|---|{rules}|
"""


def parse(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """By (symbol, architecture): registers, shared, and stack, which is the frame and all spills together."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    architecture, entry, function = "", "", ""
    for line in text.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for '(\S+)'", line):
            entry, architecture = match.groups()
        elif match := re.search(r"Function properties for (\S+)", line):
            function = match[1]
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found.setdefault((function, architecture), {})["stack"] = sum(map(int, match.groups()))
        elif match := re.search(r"Used (\d+) registers", line):
            shared = re.search(r"(\d+) bytes smem", line)
            found.setdefault((entry, architecture), {}).update(
                registers=int(match[1]), shared=int(shared[1]) if shared else 0
            )
    return found


def mended(text: str) -> list[str]:
    """What ptxas says it has done to the matrix instructions of warpgroups, such as waits that were missing (C7510 to C7519)."""
    return [line.split("info    : ")[-1] for line in text.splitlines() if re.search(r"\(C75\d\d\)", line)]


def short_names(symbols: list[str]) -> dict[str, str]:
    """Demangled, without return type, parameters and the backend's own namespace."""
    output = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    names = {}
    for symbol, name in zip(symbols, output.splitlines()):
        name = re.sub(r"baton::kernels::cuda::|\(anonymous namespace\)::", "", name)
        name = re.sub(r"\((\w+)\)(\d+)", r"\1 \2", name)  # a value of an enumeration
        names[symbol] = re.sub(r"^void |\(.*$", "", name)
    return names


def collect(folder: pathlib.Path, files: list[str]) -> tuple[dict[tuple[str, str], dict[str, dict[str, int]]], list[str]]:
    """By (file, kernel) and architecture, and the problems met."""
    kernels: dict[tuple[str, str], dict[str, dict[str, int]]] = {}
    problems = []
    for file in sorted(pathlib.Path(path).name for path in files):
        log = folder / (pathlib.Path(file).stem + ".ptxas")
        if not log.is_file():
            problems.append(f"{log} is missing: build the target baton_cuda_kernels")
            continue
        text = log.read_text()
        problems += [f"{file}: {advice}" for advice in mended(text)]
        found = parse(text)
        names = short_names(sorted({symbol for symbol, _ in found}))
        for (symbol, architecture), facts in sorted(found.items()):
            name = names[symbol]
            if facts.get("stack", 0) > 0 and name not in ALLOWED:
                problems.append(
                    f"{file}: {name} on {architecture} has {facts['stack']} bytes of stack frame and spills, expected 0;"
                    f" {log} has the details"
                )
            if "registers" in facts:
                kernels.setdefault((file, name), {})[architecture] = facts
    return kernels, problems


def table(kernels: dict[tuple[str, str], dict[str, dict[str, int]]], release: str) -> str:
    architectures = sorted({a for facts in kernels.values() for a in facts}, key=lambda a: int(re.sub(r"\D", "", a)))
    lines = [
        HEAD.format(update=UPDATE, release=release, architectures=" | ".join(architectures), rules="---|" * len(architectures))
        .replace("||\n", "|\n")
        .rstrip("\n")
    ]
    for (file, name), facts in sorted(kernels.items()):
        cells = []
        for architecture in architectures:
            fact = facts.get(architecture)
            cell = "" if fact is None else str(fact["registers"])
            if fact is not None and fact["shared"] > 0:
                cell += f", {fact['shared']} B"
            cells.append(cell)
        lines.append(f"| {file} | `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def self_test() -> None:
    found = parse(
        "ptxas info    : Compiling entry function '_Z1kv' for 'sm_90a'\n"
        "ptxas info    : Function properties for _Z1kv\n"
        "    8 bytes stack frame, 4 bytes spill stores, 2 bytes spill loads\n"
        "ptxas info    : Used 32 registers, used 1 barriers, 16 bytes smem, 360 bytes cmem[0]\n"
    )
    expected = {("_Z1kv", "sm_90a"): {"stack": 14, "registers": 32, "shared": 16}}
    assert found == expected, found
    advice = "ptxas info    : (C7517) warpgroup.wait is injected in around line 9 by compiler"
    assert mended(f"ptxas info    : Used 9 registers\n{advice}\n") == [advice.split(" : ")[1]]
    names = short_names(["_ZN5baton7kernels4cuda12_GLOBAL__N_112SampleKernelILi512EEEvNS1_12SampleLaunchE"])
    assert list(names.values()) == ["SampleKernel<512>"], names


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nvcc", required=True)
    parser.add_argument("--folder", required=True, type=pathlib.Path)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("files", nargs="+")
    options = parser.parse_args()
    self_test()
    version = subprocess.run([options.nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    release = "nvcc " + re.search(r"V[\d.]+", version)[0]
    kernels, problems = collect(options.folder, options.files)
    new = table(kernels, release)
    if options.update and not problems:
        TABLE.write_text(new)
    old = TABLE.read_text() if TABLE.is_file() else ""
    if old != new and f"Compiler: {release}\n" in old:
        before, after = set(old.splitlines()), set(new.splitlines())
        problems += [f"- {line}" for line in sorted(before - after)] + [f"+ {line}" for line in sorted(after - before)]
        problems.append(f"{TABLE.name} is not what ptxas says (- written, + said); if that is meant: {UPDATE}")
    elif f"Compiler: {release}\n" not in old:
        print(f"{TABLE.name} is of another compiler than {release}: registers are not compared")
    print("\n".join(problems) or f"{len(kernels)} kernels, nothing spills")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
