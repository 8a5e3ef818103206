"""Trains a model with PyTorch and transformers on the CPU and reports its speed: what Cambium is measured against.

Everything that a careful user would choose is tried, each combination in a process of its own, and the fastest is the
peer: experts eager, batched and grouped; attention eager and sdpa; AdamW fused and foreach; compiled if asked for.
Random tokens and weights unless given: speed does not depend on them, but for the balance of the experts.

    python torch_train.py --config reference.json --dtype bf16 --json
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

EXPERTS = ["eager", "batched_mm", "grouped_mm"]
ATTENTION = ["sdpa", "eager"]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="config.json (random weights), or a model directory")
    parser.add_argument("--tokens", type=Path, help="flat little-endian token file; random tokens without it")
    parser.add_argument("--token-dtype", default="u2", choices=["u2", "u4"])
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="windows a step")
    parser.add_argument("--microbatch-rows", type=int, help="windows at a time; all of them by default")
    parser.add_argument("--steps", type=int, default=8, help="steps measured")
    parser.add_argument("--warmup", type=int, default=2, help="steps before those")
    parser.add_argument("--dtype", default="f32", choices=["f32", "bf16", "bf16-master", "bf16-pure"], help=(
        "bf16: autocast over f32 weights; bf16-master: a bf16 model whose optimizer holds f32 weights; "
        "bf16-pure: a bf16 model and nothing else, which no one should train with"))
    parser.add_argument("--experts", default="best", choices=[*EXPERTS, "best"])
    parser.add_argument("--attention", default="best", choices=[*ATTENTION, "best"])
    parser.add_argument("--optimizer", default="best", choices=["fused", "foreach", "best"])
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (needs a C++ compiler)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-gib", type=float, default=12.0, help="what needs more for its experts is left out")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def alone(options, experts: str, attention: str) -> dict:
    """Runs one combination in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--experts", experts, "--attention", attention, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    reason = done.stderr.strip().splitlines()[-1:] or [f"ended with {done.returncode}"]
    return {"experts": experts, "attention": attention, "failed": reason[0]}


def describe(result: dict) -> str:
    what = f"{result['experts']:>10} {result['attention']:>5}"
    if "failed" in result:
        return f"{what}  {result['failed']}"
    return (f"{what}  {result['tokens_per_s']:9.0f} tokens/s  {result['ms_per_step']:8.1f} ms/step  "
            f"{result['gflops']:6.0f} GFLOP/s  {result['peak_rss_bytes'] / 2**20:6.0f} MiB  {result['optimizer']}")


def main():
    options = arguments()
    experts = EXPERTS if options.experts == "best" else [options.experts]
    attention = ATTENTION if options.attention == "best" else [options.attention]
    if len(experts) == len(attention) == 1:
        from peer_step import measure

        result = measure(options)
        print(json.dumps(result) if options.json else describe(result))
        return
    results = []
    for one in experts:
        for other in attention:
            results.append(alone(options, one, other))
            print(describe(results[-1]), file=sys.stderr, flush=True)
    finished = [result for result in results if "failed" not in result]
    if not finished:
        sys.exit("no combination ran")
    best = max(finished, key=lambda result: result["tokens_per_s"])
    print(json.dumps({**best, "variants": results}) if options.json else f"best: {describe(best)}")


if __name__ == "__main__":
    main()
