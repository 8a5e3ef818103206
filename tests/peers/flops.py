"""Counts a model's matrix work, as `ModelSpec::forward_flops_per_token` does: products only, attention causal."""


def matrices(model):
    """(active parameters of all matrices but the embedding, fused experts' parameters by layer, K/E)."""
    config = model.config
    # Each family has one of the two names, some both.
    experts = getattr(config, "num_local_experts", None) or config.num_experts
    share = config.num_experts_per_tok / experts
    head = model.lm_head.weight
    dense, fused = head.numel(), []
    for name, p in model.named_parameters():
        if p.dim() == 3:
            fused.append(p.numel())
        elif p.dim() == 2 and p is not head and "embed_tokens" not in name:
            dense += p.numel()
    return dense, fused, share


def step_flops(model, rows: int, seq_len: int) -> float:
    """Floating-point operations of forward and backward of `rows` windows; a backward counts as two forwards."""
    config = model.config
    dense, experts, share = matrices(model)
    if getattr(config, "kv_lora_rank", None) is not None:
        head = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
    else:
        head = 2 * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    # A causal window of T attends to (T+1)/2 positions on average.
    attention = config.num_hidden_layers * config.num_attention_heads * head * (seq_len + 1)
    return 3 * rows * seq_len * (2 * (dense + sum(experts) * share) + attention)


def gathered_expert_bytes(model, tokens: int, width: int) -> float:
    """What `batched_mm` keeps for the backward: one copy of an expert's weights for every assignment."""
    _, experts, share = matrices(model)
    return sum(experts) * share * tokens * width
