// RMSNorm. A block for each row; the gain's gradient in two passes, over chunks of rows and then over chunks.

// y = x * r * weight, r = 1 / sqrt(mean(x²) + eps)
template <typename X, typename Y>
__device__ void forward(u64 width, f32 eps, u32 accumulate, const X *x, const f32 *weight, Y *y, f32 *inverse_rms) {
    x += blockIdx.x * width;
    y += blockIdx.x * width;
    f32 squares = 0.0f;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 value = widen(x[i]);
        squares += value * value;
    }
    f32 r = 1.0f / sqrtf(block_sum(squares) / (f32)width + eps);
    if (threadIdx.x == 0) inverse_rms[blockIdx.x] = r;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 normed = widen(x[i]) * r * weight[i];
        put(&y[i], accumulate ? widen(y[i]) + normed : normed);
    }
}

// With y_i = x_i * r * weight_i and dr/dx_j = -r³ * x_j / width:
// dx_i = r * (dy_i * weight_i - x_i * r² * dot / width), dot = sum over j of dy_j * weight_j * x_j
template <typename G, typename X, typename D>
__device__ void backward_input(u64 width, u32 accumulate, const G *dy, const X *x, const f32 *weight,
                               const f32 *inverse_rms, D *dx) {
    dy += blockIdx.x * width;
    x += blockIdx.x * width;
    dx += blockIdx.x * width;
    f32 r = inverse_rms[blockIdx.x];
    f32 dot = 0.0f;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) dot += widen(dy[i]) * weight[i] * widen(x[i]);
    f32 along = block_sum(dot) * r * r / (f32)width;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) {
        f32 gradient = r * (widen(dy[i]) * weight[i] - widen(x[i]) * along);
        put(&dx[i], accumulate ? widen(dx[i]) + gradient : gradient);
    }
}

// Of chunk blockIdx.y: partial[column] = sum over its rows of dy * x * r. Blocks of 32 columns by 8 rows.
template <typename G, typename X>
__device__ void backward_weight(u64 rows, u64 width, u64 chunk_rows, const G *dy, const X *x, const f32 *inverse_rms,
                                f32 *partial) {
    __shared__ f32 lanes[8][32];
    u64 column = (u64)blockIdx.x * 32 + threadIdx.x;
    u64 first = blockIdx.y * chunk_rows;
    u64 end = first + chunk_rows < rows ? first + chunk_rows : rows;
    f32 sum = 0.0f;
    if (column < width) {
        for (u64 row = first + threadIdx.y; row < end; row += 8) {
            sum += widen(dy[row * width + column]) * widen(x[row * width + column]) * inverse_rms[row];
        }
    }
    lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        for (u32 lane = 1; lane < 8; lane++) sum += lanes[lane][threadIdx.x];
        partial[blockIdx.y * width + column] = sum;
    }
}

#define FORWARD(X, Y)                                                                                                  \
    extern "C" __global__ void rms_norm_forward_##X##_##Y(u64 width, f32 eps, u32 accumulate, const X *x,              \
                                                          const f32 *weight, Y *y, f32 *inverse_rms) {                 \
        forward(width, eps, accumulate, x, weight, y, inverse_rms);                                                    \
    }
EACH_PAIR(FORWARD)

#define BACKWARD_INPUT(G, X, D)                                                                                        \
    extern "C" __global__ void rms_norm_backward_input_##G##_##X##_##D(u64 width, u32 accumulate, const G *dy,         \
                                                                       const X *x, const f32 *weight,                  \
                                                                       const f32 *inverse_rms, D *dx) {                \
        backward_input(width, accumulate, dy, x, weight, inverse_rms, dx);                                             \
    }
EACH_TRIPLE(BACKWARD_INPUT)

#define BACKWARD_WEIGHT(G, X)                                                                                          \
    extern "C" __global__ void rms_norm_backward_weight_##G##_##X(u64 rows, u64 width, u64 chunk_rows, const G *dy,    \
                                                                  const X *x, const f32 *inverse_rms, f32 *partial) {  \
        backward_weight(rows, width, chunk_rows, dy, x, inverse_rms, partial);                                         \
    }
EACH_PAIR(BACKWARD_WEIGHT)
