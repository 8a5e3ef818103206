// The way of tokens to their experts and back, and the check that indices stay inside their range.

// first = the first position whose index is not below the bound; stays as it is if there is none. The least of several
// is the least in whatever order they come, so this atomic does not break determinism.
extern "C" __global__ void first_not_below(u64 len, u32 bound, const u32 *indices, u32 *first) {
    u64 i = element_index();
    if (i < len && indices[i] >= bound) atomicMin(first, (u32)i);
}

// rows[i] = x[assignment[i] / top_k], a block for each row
template <typename X>
__device__ void gather_rows(u64 top_k, u64 width, const X *x, const u32 *assignment, X *rows) {
    x += assignment[blockIdx.x] / top_k * width;
    rows += blockIdx.x * width;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) rows[i] = x[i];
}

// dx[t] += sum over k of d_rows[position[t, k]], a block for each token
template <typename G, typename D>
__device__ void scatter_rows_add(u64 top_k, u64 width, const G *d_rows, const u32 *position, D *dx) {
    position += blockIdx.x * top_k;
    dx += blockIdx.x * width;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 sum = widen(dx[i]);
        for (u64 k = 0; k < top_k; k++) sum += widen(d_rows[position[k] * width + i]);
        put(&dx[i], sum);
    }
}

// out[t] += sum over k of gates[t, k] * expert_out[position[t, k]], a block for each token
template <typename X, typename Y>
__device__ void combine_forward(u64 top_k, u64 width, const X *expert_out, const u32 *position, const f32 *gates,
                                Y *out) {
    position += blockIdx.x * top_k;
    gates += blockIdx.x * top_k;
    out += blockIdx.x * width;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 sum = widen(out[i]);
        for (u64 k = 0; k < top_k; k++) sum += gates[k] * widen(expert_out[position[k] * width + i]);
        put(&out[i], sum);
    }
}

// With out[t] += gate * expert_out[row]: a block for each assignment
template <typename G, typename X, typename D>
__device__ void combine_backward(u64 top_k, u64 width, const G *d_out, const X *expert_out, const u32 *position,
                                 const f32 *gates, D *d_expert_out, f32 *d_gates) {
    d_out += blockIdx.x / top_k * width;
    u64 row = position[blockIdx.x];
    expert_out += row * width;
    d_expert_out += row * width;
    f32 gate = gates[blockIdx.x];
    f32 dot = 0.0f;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 d = widen(d_out[i]);
        dot += d * widen(expert_out[i]);
        put(&d_expert_out[i], gate * d);
    }
    dot = block_sum(dot);
    if (threadIdx.x == 0) d_gates[blockIdx.x] = dot;
}

#define GATHER(X)                                                                                                      \
    extern "C" __global__ void gather_rows_##X(u64 top_k, u64 width, const X *x, const u32 *assignment, X *rows) {     \
        gather_rows(top_k, width, x, assignment, rows);                                                                \
    }
EACH_TYPE(GATHER)

#define SCATTER(G, D)                                                                                                  \
    extern "C" __global__ void scatter_rows_add_##G##_##D(u64 top_k, u64 width, const G *d_rows, const u32 *position,  \
                                                          D *dx) {                                                     \
        scatter_rows_add(top_k, width, d_rows, position, dx);                                                          \
    }
EACH_PAIR(SCATTER)

#define COMBINE_FORWARD(X, Y)                                                                                          \
    extern "C" __global__ void combine_forward_##X##_##Y(u64 top_k, u64 width, const X *expert_out,                    \
                                                         const u32 *position, const f32 *gates, Y *out) {              \
        combine_forward(top_k, width, expert_out, position, gates, out);                                               \
    }
EACH_PAIR(COMBINE_FORWARD)

#define COMBINE_BACKWARD(G, X, D)                                                                                      \
    extern "C" __global__ void combine_backward_##G##_##X##_##D(                                                       \
        u64 top_k, u64 width, const G *d_out, const X *expert_out, const u32 *position, const f32 *gates,              \
        D *d_expert_out, f32 *d_gates) {                                                                               \
        combine_backward(top_k, width, d_out, expert_out, position, gates, d_expert_out, d_gates);                     \
    }
EACH_TRIPLE(COMBINE_BACKWARD)
