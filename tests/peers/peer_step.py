"""One combination of the peer: the model, its training step in each precision, and the clock."""

import resource
import statistics
import sys
import time
from contextlib import nullcontext

import numpy
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from flops import gathered_expert_bytes, step_flops

ADAMW = {"betas": (0.9, 0.95), "eps": 1e-8}
WEIGHT_DECAY = 0.1
GRAD_CLIP = 1.0


def build(options):
    """The model in f32: from a directory with its weights, or from a config with random ones."""
    chosen = {"attn_implementation": options.attention, "experts_implementation": options.experts}
    if options.config.is_dir():
        return AutoModelForCausalLM.from_pretrained(options.config, dtype=torch.float32, **chosen)
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(options.config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=options.attention)
    model.set_experts_implementation(options.experts)
    return model


def windows(options, vocab: int) -> torch.Tensor:
    """Rows of T+1 ids for all steps, (steps, rows, T+1)."""
    steps, length = options.warmup + options.steps, options.seq_len
    count = steps * options.rows
    if options.tokens is None:
        return torch.randint(vocab, (steps, options.rows, length + 1), generator=torch.Generator().manual_seed(0))
    flat = numpy.memmap(options.tokens, dtype=f"<{options.token_dtype}", mode="r")
    if len(flat) < count * length + 1:
        sys.exit(f"{options.tokens} has {len(flat)} tokens; {count} windows of {length} need {count * length + 1}")
    rows = numpy.stack([flat[row * length : (row + 1) * length + 1] for row in range(count)]).astype(numpy.int64)
    return torch.from_numpy(rows).view(steps, options.rows, length + 1)


class Step:
    """A training step: microbatches forward and backward, clip, AdamW."""

    def __init__(self, model, options):
        self.options = options
        self.parameters = list(model.parameters())
        self.masters = self.parameters
        if options.dtype in ("bf16-master", "bf16-pure"):
            if options.dtype == "bf16-master":
                self.masters = [p.detach().clone() for p in self.parameters]
            for p in self.parameters:  # Not model.to(): rotary frequencies and selection biases stay f32.
                p.data = p.data.to(torch.bfloat16)
        self.autocast = torch.autocast("cpu", torch.bfloat16) if options.dtype == "bf16" else nullcontext()
        self.model = torch.compile(model) if options.compile else model
        self.kind, self.optimizer = options.optimizer, None  # Made at the first update, where there are gradients.

    def adamw(self, kind: str):
        groups = [
            {"params": [p for p in self.masters if p.dim() >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in self.masters if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.options.lr, **{kind: True}, **ADAMW)

    def backward(self, ids: torch.Tensor) -> float:
        """Accumulates the gradient of the mean loss over the microbatches; returns that loss."""
        size = self.options.microbatch_rows or len(ids)
        total = 0.0
        for part in ids.split(size):
            inputs, targets = part[:, :-1], part[:, 1:].contiguous()
            with self.autocast:
                loss = self.model(input_ids=inputs, labels=inputs, shift_labels=targets, use_cache=False).loss
            loss = loss * (len(part) / len(ids))
            loss.backward()
            total += loss.item()
        return total

    def update(self, optimizer):
        if self.masters is not self.parameters:
            for master, p in zip(self.masters, self.parameters):
                master.grad = torch.zeros_like(master) if p.grad is None else p.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, GRAD_CLIP, foreach=True)
        optimizer.step()
        if self.masters is not self.parameters:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, self.masters)
        for p in self.parameters:
            p.grad = None

    def faster_adamw(self) -> str:
        """Times each AdamW on the gradients that are there, one at a time so that only one has moments."""

        def seconds(kind: str) -> float:
            optimizer, taken = self.adamw(kind), []
            for _ in range(4):
                begin = time.perf_counter()
                self.update(optimizer)
                taken.append(time.perf_counter() - begin)
                for p, grad in zip(self.parameters, grads):
                    p.grad = grad
            return min(taken[1:])  # The first makes the moments.

        grads = [p.grad for p in self.parameters]
        return min(("fused", "foreach"), key=seconds)

    def run(self, ids: torch.Tensor) -> float:
        loss = self.backward(ids)
        if self.optimizer is None:
            self.kind = self.faster_adamw() if self.kind == "best" else self.kind
            self.optimizer = self.adamw(self.kind)
        self.update(self.optimizer)
        return loss


def measure(options) -> dict:
    """Runs warm-up and measured steps of one combination; rates are of the median step."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    model = build(options).train()
    tokens = (options.microbatch_rows or options.rows) * options.seq_len
    gathered = gathered_expert_bytes(model, tokens, 4 if options.dtype in ("f32", "bf16") else 2)
    if options.experts == "batched_mm" and gathered > options.memory_gib * 2**30:
        sys.exit(f"needs {gathered / 2**30:.0f} GiB for a copy of an expert for every token; smaller --microbatch-rows")
    batches = windows(options, model.config.vocab_size)
    step, seconds, losses = Step(model, options), [], []
    for ids in batches:
        begin = time.perf_counter()
        losses.append(step.run(ids))
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[options.warmup :])
    flops = step_flops(model, options.rows, options.seq_len)
    return {
        "experts": options.experts, "attention": options.attention, "optimizer": step.kind,
        "dtype": options.dtype, "compile": options.compile, "threads": options.threads,
        "tokens_per_s": options.rows * options.seq_len / median, "ms_per_step": 1000 * median,
        "gflops": flops / median / 1e9, "flops_per_step": flops,
        "ms_by_step": [1000 * s for s in seconds[options.warmup :]],
        # Linux counts in KiB.
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "first_loss": losses[0], "last_loss": losses[-1], "torch": torch.__version__,
    }
