// Rotary position embedding, in place. A block for each token, a thread for each of its pairs in turn.

// (first, second) = (first * cos - second * sin, second * cos + first * sin); the inverse has -sin.
template <typename X>
__device__ void rope(u64 seq_len, u64 heads, u64 head_dim, u64 rotary_start, u64 half, u32 interleaved, u32 inverse,
                     const f32 *table, X *x) {
    x += blockIdx.x * heads * head_dim + rotary_start;
    table += blockIdx.x % seq_len * half * 2;
    // A token's pairs fit 32 bits: the wrapper refuses others. Division of 64 bits would cost more than the rotation.
    u32 pairs = (u32)half, total = (u32)heads * pairs;
    for (u32 i = threadIdx.x; i < total; i += blockDim.x) {
        u32 head = i / pairs, pair = i % pairs;
        X *first = x + (u64)head * head_dim + (interleaved ? 2 * pair : pair);
        X *second = first + (interleaved ? 1 : pairs);
        f32 cosine = table[2 * pair], sine = inverse ? -table[2 * pair + 1] : table[2 * pair + 1];
        f32 a = widen(*first), b = widen(*second);
        put(first, a * cosine - b * sine);
        put(second, b * cosine + a * sine);
    }
}

#define ROPE(X)                                                                                                        \
    extern "C" __global__ void rope_##X(u64 seq_len, u64 heads, u64 head_dim, u64 rotary_start, u64 half,              \
                                        u32 interleaved, u32 inverse, const f32 *table, X *x) {                        \
        rope(seq_len, heads, head_dim, rotary_start, half, interleaved, inverse, table, x);                            \
    }
EACH_TYPE(ROPE)
