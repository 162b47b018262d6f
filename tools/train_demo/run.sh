#!/bin/bash
# Rebuilds models/demo from nothing: environment, corpus, tokenizer, training (one and a half to two hours of one core), export,
# evaluation. Usage: tools/train_demo/run.sh [WORK_DIR]. Training resumes from its last checkpoint when run again.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
work="${1:-$here/../../build/train_demo}"
out="$here/../../models/demo"
mkdir -p "$work" "$out"

if [[ ! -x "$work/venv/bin/python" ]]; then
  python3 -m venv "$work/venv"
  "$work/venv/bin/pip" install --quiet -r "$here/requirements.txt"
fi
python="$work/venv/bin/python"

[[ -f "$work/train.txt" ]] || "$python" "$here/corpus.py" --work "$work"
[[ -f "$work/train.u16" ]] || "$python" "$here/tokenizer.py" --work "$work" --out "$out"

# One thread makes the sums' order, and so the weights, repeatable. Large tensors stay on the heap (in huge pages where
# the system allows it): mapping them anew for every operation costs a third of the time. The primitive cache holds a
# kernel for each number of rows that an expert may get.
OMP_NUM_THREADS=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=16000000000 MALLOC_TOP_PAD_=268435456 \
  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 ONEDNN_PRIMITIVE_CACHE_CAPACITY=8192 \
  "$python" "$here/train.py" --work "$work"

"$python" "$here/export.py" --checkpoint "$work/checkpoint.pt" --out "$out"
"$python" "$here/evaluate.py" --model "$out" --work "$work" --check --heldout --samples --plot "$out/loss.png"
