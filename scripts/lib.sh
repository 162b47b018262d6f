# shellcheck shell=bash
# Shared by the scripts beside it (sourced, not run). Sets BATON_ROOT and leaves the caller's directory alone.

BATON_ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Seconds since the shell started, for the progress lines.
elapsed() { printf '%d s' "$SECONDS"; }

# Memory this process may use, in MiB: what the kernel calls available, less if a cgroup allows less.
available_mib() {
  local kib limit
  kib=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
  local mib=$((kib / 1024))
  limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || true)
  if [[ $limit =~ ^[0-9]+$ ]] && ((limit / 1048576 < mib)); then mib=$((limit / 1048576)); fi
  echo "$mib"
}

# Compile jobs: one per processor, but no more than memory can hold (a gRPC source takes about 1.2 GiB).
build_jobs() {
  local jobs by_memory
  jobs=$(nproc)
  by_memory=$(($(available_mib) / 1536))
  if ((by_memory < jobs)); then jobs=$by_memory; fi
  if ((jobs < 1)); then jobs=1; fi
  echo "$jobs"
}

# configure_and_build PRESET [TARGET...]: output goes to stderr, so that stdout stays the program's own. What CMake says
# is shown only when it fails.
configure_and_build() {
  local preset=$1 jobs log target=()
  shift
  (($# == 0)) || target=(--target "$@")
  jobs=$(build_jobs)
  say "Configuring preset $preset"
  mkdir -p "$BATON_ROOT/build"
  log=$BATON_ROOT/build/configure-$preset.log
  if ! (cd "$BATON_ROOT" && cmake --preset "$preset") >"$log" 2>&1; then
    cat "$log" >&2
    die "cmake could not configure preset $preset (the above is also in $log)"
  fi
  say "Building ${*:-everything} with $jobs job(s)"
  (cd "$BATON_ROOT" && cmake --build --preset "$preset" --parallel "$jobs" "${target[@]}") >&2
  say "Built after $(elapsed)"
}

# The C++ files of this checkout, each ended by a zero byte.
tracked_code() {
  (cd "$BATON_ROOT" && git -c safe.directory='*' ls-files -z '*.h' '*.cc' '*.cu' | while IFS= read -r -d '' file; do
    if [[ -e $file ]]; then printf '%s\0' "$file"; fi
  done)
}
