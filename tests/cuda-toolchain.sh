#!/usr/bin/env bash
# Gets what compiling CUDA kernels needs, NVRTC and CUDA's headers of 13.0, into .cuda of this checkout, without a
# toolkit, a driver or a card. Does nothing where they already are. Prints the environment to use them:
#   eval "$(tests/cuda-toolchain.sh)"
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
target="$root/.cuda"
packages=(nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)

# Written last: an installation that was cut off is made again.
stamp="$target/installed"
if [ "$(cat "$stamp" 2>/dev/null || true)" != "${packages[*]}" ]; then
    rm -rf "$target"
    python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --target "$target" "${packages[@]}" >&2
    echo "${packages[*]}" >"$stamp"
fi

library="$target/nvidia/cu13/lib"
include="$target/nvidia/cu13/include"
for file in "$library/libnvrtc.so.13" "$include/cuda_bf16.h"; do
    [ -e "$file" ] || { echo "$file is missing; remove $target and run this again" >&2; exit 1; }
done
printf 'export LD_LIBRARY_PATH=%q${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}\n' "$library"
printf 'export CAMBIUM_CUDA_INCLUDE=%q\n' "$include"
