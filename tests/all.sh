#!/usr/bin/env bash
# Every check and every test, on a machine with a Rust toolchain, a C compiler and Python 3 with pip.
# What else it needs it installs into this checkout (.cuda) or into cargo's home (cargo-nextest).
set -euo pipefail
cd "$(dirname "$0")/.."

need() { command -v "$1" >/dev/null 2>&1 || { echo "tests/all.sh needs $1: $2" >&2; exit 1; }; }
need cargo "install Rust from rustup.rs"
need cc "install a C compiler, for example the package build-essential"
need python3 "install Python 3"
python3 -m pip --version >/dev/null 2>&1 || { echo "tests/all.sh needs pip for python3: install the package python3-pip" >&2; exit 1; }
cargo nextest --version >/dev/null 2>&1 || cargo install --locked cargo-nextest

step() { printf '\n== %s\n' "$*"; "$@"; }

step cargo fmt --all --check
step cargo clippy --workspace --all-targets --locked -- -D warnings
step cargo clippy --workspace --all-targets --locked --features cuda -- -D warnings
RUSTDOCFLAGS="-D warnings" step cargo doc --workspace --no-deps --locked
step cargo test --workspace --doc --locked

# Each CUDA kernel to a cubin, on a machine with or without a card.
eval "$(tests/cuda-toolchain.sh)"
CAMBIUM_REQUIRE_NVRTC=1 step cargo nextest run --locked -p cambium-kernels --features cuda --test cuda_compile --no-fail-fast

step cargo nextest run --workspace --locked --no-fail-fast
