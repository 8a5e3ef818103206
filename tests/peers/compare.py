"""Runs `cambium bench step` and the PyTorch peer in alternation on the same models; prints the ratio of their speeds.

First the peer's combinations are tried once for each model and precision; then the fastest and Cambium take turns
(A B A B ...), so that a machine that slows down or heats up slows both. A pair's ratio compares neighbours in time;
reported are the medians. Nothing else may run meanwhile; the load average is reported, so that a reader can tell.

    python compare.py --cambium target/release/cambium
    python compare.py --model wide.json deep.json --dtype bf16 --pairs 5 --json
    python compare.py --model long.json --seq-len 2048 --rows 1
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Cambium's bf16 (f32 weights, bf16 compute) against the faster of the two ways in which PyTorch does that.
PEER_DTYPES = {"f32": ["f32"], "bf16": ["bf16", "bf16-master"]}

# What names one combination of the peer.
CHOICES = ("dtype", "experts", "attention", "optimizer", "compile")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cambium", default="cambium", help="the command to measure")
    parser.add_argument("--model", nargs="+", type=Path, default=[HERE / "reference.json"], help="config.json files")
    parser.add_argument("--dtype", nargs="+", choices=list(PEER_DTYPES), default=["f32", "bf16"])
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--microbatch-rows", type=int, help="of Cambium; all rows by default")
    parser.add_argument("--peer-microbatch-rows", type=int, help="of the peer; all rows by default")
    parser.add_argument("--pairs", type=int, default=3, help="how often each of the two runs")
    parser.add_argument("--steps", type=int, default=8, help="measured steps of a run")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--experts", default="best", help="of the peer: eager, batched_mm, grouped_mm or best")
    parser.add_argument("--attention", default="best", help="of the peer: sdpa, eager or best")
    parser.add_argument("--compile", action="store_true", help="let the peer use torch.compile as well")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def output_of(command: list) -> dict:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stderr}{done.stdout}")
    return json.loads(done.stdout)


def cambium(options, model: Path, dtype: str) -> dict:
    return output_of([
        options.cambium, "bench", "step", "--model", model, "--seq-len", options.seq_len, "--rows", options.rows,
        "--microbatch-rows", options.microbatch_rows or options.rows, "--dtype", dtype, "--steps", options.steps,
        "--threads", options.threads, "--json",
    ])


def peer(options, model: Path, dtype: str, experts: str, attention: str, optimizer: str, compiled: bool) -> dict:
    command = [
        sys.executable, HERE / "torch_train.py", "--config", model, "--seq-len", options.seq_len,
        "--rows", options.rows, "--dtype", dtype, "--steps", options.steps, "--threads", options.threads,
        "--experts", experts, "--attention", attention, "--optimizer", optimizer, "--json",
    ]
    if options.peer_microbatch_rows:
        command += ["--microbatch-rows", options.peer_microbatch_rows]
    return output_of(command + (["--compile"] if compiled else []))


def fastest_peer(options, model: Path, dtype: str) -> tuple[dict, list]:
    """Tries every combination once; returns the fastest and all of them."""
    tried = []
    for peer_dtype in PEER_DTYPES[dtype]:
        for compiled in [False, True] if options.compile else [False]:
            result = peer(options, model, peer_dtype, options.experts, options.attention, "best", compiled)
            named = {"dtype": peer_dtype, "compile": compiled}
            tried += [{**named, **variant} for variant in result.get("variants", [result])]
    finished = [result for result in tried if "failed" not in result]
    return max(finished, key=lambda result: result["tokens_per_s"]), tried


def compare(options, model: Path, dtype: str) -> dict:
    best, tried = fastest_peer(options, model, dtype)
    chosen = {name: best[name] for name in CHOICES}
    ours, theirs = [], []
    for _ in range(options.pairs):
        ours.append(cambium(options, model, dtype)["tokens_per_s"])
        theirs.append(peer(options, model, *(chosen[name] for name in CHOICES))["tokens_per_s"])
    ratios = [a / b for a, b in zip(ours, theirs)]
    return {
        "model": model.stem, "dtype": dtype, "seq_len": options.seq_len, "rows": options.rows,
        "cambium_tokens_per_s": statistics.median(ours), "peer_tokens_per_s": statistics.median(theirs),
        "ratio": statistics.median(ratios), "ratios": ratios, "peer": chosen, "peer_variants": tried,
        "load_average": os.getloadavg()[0],
    }


def line(result: dict) -> str:
    peer_is = " ".join([*(result["peer"][name] for name in ("dtype", "experts", "attention", "optimizer")),
                        *(["compiled"] if result["peer"]["compile"] else [])])
    spread = f"{min(result['ratios']):.2f}..{max(result['ratios']):.2f}"
    return (f"{result['model']:12} {result['dtype']:5} cambium {result['cambium_tokens_per_s']:8.0f} tokens/s  "
            f"peer {result['peer_tokens_per_s']:8.0f} tokens/s ({peer_is})  ratio {result['ratio']:.2f} ({spread})  "
            f"load {result['load_average']:.1f}")


def main():
    options = arguments()
    results = []
    for model in options.model:
        for dtype in options.dtype:
            results.append(compare(options, model, dtype))
            print(line(results[-1]), file=sys.stderr if options.json else sys.stdout, flush=True)
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
