#!/bin/sh
# compile.sh LOG nvcc ...: runs nvcc and keeps what ptxas says of each kernel (registers, shared memory, spills) in LOG;
# prints it only when the compilation fails.
log=$1
shift
"$@" >"$log" 2>&1 && exit 0
status=$?
cat "$log" >&2
exit $status
