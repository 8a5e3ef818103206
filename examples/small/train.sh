#!/usr/bin/env bash
# Trains a small MoE on the bytes of this repository's own text. Further arguments go to `cambium train`.
set -euo pipefail
cd "$(dirname "$0")/../.."
command -v cargo >/dev/null || { echo "examples/small/train.sh needs cargo: install Rust from rustup.rs" >&2; exit 1; }
command -v python3 >/dev/null || { echo "examples/small/train.sh needs python3: install Python 3" >&2; exit 1; }
python3 examples/small/corpus.py
exec cargo run --release --locked --bin cambium -- train examples/small/run.toml "$@"
