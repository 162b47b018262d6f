"""Draws what `baton bench experts --csv` prints: the step times of three ways to place experts.

    baton bench experts --csv | python plot.py docs/images/experts-skew.svg --shift-steps 200

Needs matplotlib; nothing in Baton's build or tests does."""

import argparse
import csv
import io
import pathlib
import sys

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "baton"  # the same file each time
matplotlib.rcParams["font.family"] = "DejaVu Sans"
from matplotlib import pyplot  # noqa: E402

LINES = (
    ("none", "one slot for each expert", "#b0413e"),
    ("static", "spare slots, placed once", "#d8973c"),
    ("live", "spare slots, rebalanced live", "#2a6f97"),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="SVG file to write")
    parser.add_argument("--shift-steps", type=int, default=200, help="as given to the benchmark")
    arguments = parser.parse_args()

    rows = list(csv.DictReader(sys.stdin))
    steps = [int(row["step"]) for row in rows]
    figure, axes = pyplot.subplots(figsize=(9, 3.6), layout="constrained")
    for name, label, color in LINES:
        axes.plot(steps, [float(row[name]) for row in rows], color=color, linewidth=1.1, label=label)
    for step in range(arguments.shift_steps, steps[-1] + 1, arguments.shift_steps):
        axes.axvline(step, color="#888888", linewidth=0.8, linestyle=":")
        axes.annotate("other experts\nbecome popular", (step, 1.0), xytext=(4, 3), textcoords="offset points",
                      fontsize=8, color="#666666", xycoords=("data", "axes fraction"), annotation_clip=False)
    axes.set_ylim(bottom=1.0)
    axes.set_xlim(steps[0], steps[-1])
    axes.set_xlabel("step")
    axes.set_ylabel("step time (even ranks = 1)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    pathlib.Path(arguments.out).write_text("".join(line.rstrip() + "\n" for line in text.getvalue().splitlines()))


if __name__ == "__main__":
    main()
