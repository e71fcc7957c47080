#!/usr/bin/env bash
# Fails if a kernel object exports a weak symbol: the linker keeps one copy of those for the whole
# module, and the copy that it keeps may use instructions that the CPU lacks.
#   usage: check_isa_symbols.sh BUILD_DIR
set -euo pipefail
objects=$(find "$1" -path '*/kernels_*.dir/*' -name '*.o')
[ -n "$objects" ] || { echo "no kernel objects under $1" >&2; exit 1; }
weak=$(for object in $objects; do nm -C --defined-only "$object" | grep -E ' [WVu] ' | sed "s|^|$object: |" || true; done)
if [ -n "$weak" ]; then
  printf '%s\n' "$weak" >&2
  exit 1
fi
echo "no weak symbols in $(wc -w <<<"$objects") kernel objects"
