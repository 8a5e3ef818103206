// Both ends of the model: embedding and cross-entropy.

// out[t] = table[ids[t]], a block for each token
template <typename X, typename Y> __device__ void embedding_forward(u64 width, const X *table, const u32 *ids, Y *out) {
    table += ids[blockIdx.x] * width;
    out += blockIdx.x * width;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) put(&out[i], widen(table[i]));
}

// A block for each different id: d_table[id] += d_out[t] for each t that has it, in order. `tokens` holds all t sorted by
// id, `starts` where each id's begin.
template <typename G>
__device__ void embedding_backward(u64 width, const G *d_out, const u32 *ids, const u32 *starts, const u32 *tokens,
                                   f32 *d_table) {
    u32 first = starts[blockIdx.x], end = starts[blockIdx.x + 1];
    d_table += ids[blockIdx.x] * width;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 sum = d_table[i];
        for (u32 at = first; at < end; at++) sum += widen(d_out[tokens[at] * width + i]);
        d_table[i] = sum;
    }
}

// nll = log(sum of exp(logits - greatest)) - (logit of the target - greatest), a block for each token
__device__ inline void softmax_row(u64 vocab, const f32 *logits, f32 &greatest, f32 &sum) {
    f32 most = -__int_as_float(0x7f800000);
    for (u64 i = threadIdx.x; i < vocab; i += blockDim.x) most = fmaxf(most, logits[i]);
    greatest = block_max(most);
    f32 part = 0.0f;
    for (u64 i = threadIdx.x; i < vocab; i += blockDim.x) part += expf(logits[i] - greatest);
    sum = block_sum(part);
}

extern "C" __global__ void cross_entropy(u64 vocab, const f32 *logits, const u32 *targets, f32 *nll) {
    logits += blockIdx.x * vocab;
    f32 greatest, sum;
    softmax_row(vocab, logits, greatest, sum);
    if (threadIdx.x == 0) nll[blockIdx.x] = logf(sum) - (logits[targets[blockIdx.x]] - greatest);
}

// And d_logits = (softmax(logits) - onehot(target)) * grad_scale
template <typename D>
__device__ void cross_entropy_gradient(u64 vocab, f32 grad_scale, const f32 *logits, const u32 *targets, f32 *nll,
                                       D *d_logits) {
    logits += blockIdx.x * vocab;
    d_logits += blockIdx.x * vocab;
    u32 target = targets[blockIdx.x];
    f32 greatest, sum;
    softmax_row(vocab, logits, greatest, sum);
    if (threadIdx.x == 0) nll[blockIdx.x] = logf(sum) - (logits[target] - greatest);
    for (u64 i = threadIdx.x; i < vocab; i += blockDim.x) {
        f32 probability = expf(logits[i] - greatest) / sum;
        put(&d_logits[i], (i == target ? probability - 1.0f : probability) * grad_scale);
    }
}

#define EMBEDDING_FORWARD(X, Y)                                                                                        \
    extern "C" __global__ void embedding_forward_##X##_##Y(u64 width, const X *table, const u32 *ids, Y *out) {        \
        embedding_forward(width, table, ids, out);                                                                     \
    }
EACH_PAIR(EMBEDDING_FORWARD)

#define EMBEDDING_BACKWARD(G)                                                                                          \
    extern "C" __global__ void embedding_backward_##G(u64 width, const G *d_out, const u32 *ids, const u32 *starts,    \
                                                      const u32 *tokens, f32 *d_table) {                               \
        embedding_backward(width, d_out, ids, starts, tokens, d_table);                                                \
    }
EACH_TYPE(EMBEDDING_BACKWARD)

#define CROSS_ENTROPY(D)                                                                                               \
    extern "C" __global__ void cross_entropy_gradient_##D(u64 vocab, f32 grad_scale, const f32 *logits,                \
                                                          const u32 *targets, f32 *nll, D *d_logits) {                 \
        cross_entropy_gradient(vocab, grad_scale, logits, targets, nll, d_logits);                                     \
    }
EACH_TYPE(CROSS_ENTROPY)
