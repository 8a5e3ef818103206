// AdamW and the sum of squares behind the gradient's norm.

struct Coefficients {
    f32 grad_scale, decay, beta2, one_minus_beta1, one_minus_beta2, root_correction2, eps, step_size;
};

// The order of operations is that of torch.optim.AdamW; returns the new master. A thread for each element.
__device__ inline f32 step(Coefficients by, u64 i, const f32 *grad, f32 *master, f32 *moment1, f32 *moment2) {
    f32 g = grad[i] * by.grad_scale;
    f32 p = master[i] * by.decay;
    f32 m = moment1[i] + (g - moment1[i]) * by.one_minus_beta1;
    f32 v = moment2[i] * by.beta2 + by.one_minus_beta2 * g * g;
    p -= by.step_size * m / (sqrtf(v) / by.root_correction2 + by.eps);
    master[i] = p;
    moment1[i] = m;
    moment2[i] = v;
    return p;
}

extern "C" __global__ void adamw(u64 len, Coefficients by, const f32 *grad, f32 *master, f32 *moment1, f32 *moment2) {
    u64 i = element_index();
    if (i < len) step(by, i, grad, master, moment1, moment2);
}

#define ADAMW(C)                                                                                                       \
    extern "C" __global__ void adamw_compute_##C(u64 len, Coefficients by, const f32 *grad, f32 *master, f32 *moment1, \
                                                 f32 *moment2, C *compute) {                                           \
        u64 i = element_index();                                                                                       \
        if (i < len) put(&compute[i], step(by, i, grad, master, moment1, moment2));                                    \
    }
EACH_TYPE(ADAMW)

// Of chunk blockIdx.x: partial = sum of squares in f64
template <typename X> __device__ void sum_squares(u64 len, u64 chunk, const X *x, double *partial) {
    u64 first = blockIdx.x * chunk;
    u64 end = first + chunk < len ? first + chunk : len;
    double sum = 0.0;
    for (u64 i = first + threadIdx.x; i < end; i += blockDim.x) {
        double value = (double)widen(x[i]);
        sum += value * value;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

#define SUM_SQUARES(X)                                                                                                 \
    extern "C" __global__ void sum_squares_##X(u64 len, u64 chunk, const X *x, double *partial) {                      \
        sum_squares(len, chunk, x, partial);                                                                           \
    }
EACH_TYPE(SUM_SQUARES)
