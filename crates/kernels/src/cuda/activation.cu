// SwiGLU and the sigmoid gate of a shared expert. A block for each row.

// out = gate * sigmoid(gate) * up
template <typename X, typename Y> __device__ void swiglu_forward(u64 width, const X *gate_up, Y *out) {
    const X *gates = gate_up + 2 * width * blockIdx.x;
    const X *ups = gates + width;
    out += blockIdx.x * width;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 gate = widen(gates[i]);
        put(&out[i], gate * sigmoid(gate) * widen(ups[i]));
    }
}

// With out = gate * s * up, s = sigmoid(gate), ds/dgate = s * (1 - s)
template <typename G, typename X, typename D>
__device__ void swiglu_backward(u64 width, const G *d_out, const X *gate_up, D *d_gate_up) {
    d_out += blockIdx.x * width;
    const X *gates = gate_up + 2 * width * blockIdx.x;
    const X *ups = gates + width;
    D *d_gates = d_gate_up + 2 * width * blockIdx.x;
    D *d_ups = d_gates + width;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 gate = widen(gates[i]), up = widen(ups[i]), d = widen(d_out[i]);
        f32 s = sigmoid(gate);
        put(&d_gates[i], d * up * s * (1.0f + gate * (1.0f - s)));
        put(&d_ups[i], d * gate * s);
    }
}

// out += sigmoid(logit) * x
template <typename X, typename Y>
__device__ void sigmoid_gate_forward(u64 width, const f32 *logit, const X *x, Y *out) {
    x += blockIdx.x * width;
    out += blockIdx.x * width;
    f32 s = sigmoid(logit[blockIdx.x]);
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) put(&out[i], widen(out[i]) + s * widen(x[i]));
}

// With out += s * x, s = sigmoid(logit)
template <typename G, typename X, typename D>
__device__ void sigmoid_gate_backward(u64 width, const G *d_out, const f32 *logit, const X *x, D *dx, f32 *d_logit) {
    d_out += blockIdx.x * width;
    x += blockIdx.x * width;
    dx += blockIdx.x * width;
    f32 s = sigmoid(logit[blockIdx.x]);
    f32 dot = 0.0f;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 d = widen(d_out[i]);
        dot += d * widen(x[i]);
        put(&dx[i], s * d);
    }
    dot = block_sum(dot);
    if (threadIdx.x == 0) d_logit[blockIdx.x] = dot * s * (1.0f - s);
}

#define SWIGLU_FORWARD(X, Y)                                                                                           \
    extern "C" __global__ void swiglu_forward_##X##_##Y(u64 width, const X *gate_up, Y *out) {                         \
        swiglu_forward(width, gate_up, out);                                                                           \
    }
EACH_PAIR(SWIGLU_FORWARD)

#define SWIGLU_BACKWARD(G, X, D)                                                                                       \
    extern "C" __global__ void swiglu_backward_##G##_##X##_##D(u64 width, const G *d_out, const X *gate_up,            \
                                                               D *d_gate_up) {                                         \
        swiglu_backward(width, d_out, gate_up, d_gate_up);                                                             \
    }
EACH_TRIPLE(SWIGLU_BACKWARD)

#define SIGMOID_GATE_FORWARD(X, Y)                                                                                     \
    extern "C" __global__ void sigmoid_gate_forward_##X##_##Y(u64 width, const f32 *logit, const X *x, Y *out) {       \
        sigmoid_gate_forward(width, logit, x, out);                                                                    \
    }
EACH_PAIR(SIGMOID_GATE_FORWARD)

#define SIGMOID_GATE_BACKWARD(G, X, D)                                                                                 \
    extern "C" __global__ void sigmoid_gate_backward_##G##_##X##_##D(u64 width, const G *d_out, const f32 *logit,      \
                                                                     const X *x, D *dx, f32 *d_logit) {                \
        sigmoid_gate_backward(width, d_out, logit, x, dx, d_logit);                                                    \
    }
EACH_TRIPLE(SIGMOID_GATE_BACKWARD)
