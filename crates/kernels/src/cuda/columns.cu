// What works on columns: biases, sums over rows, copies and sums of parts of rows; and the sum of two arrays.

// x += bias, a block for each row
template <typename X> __device__ void bias_forward(u64 width, const f32 *bias, X *x) {
    x += blockIdx.x * width;
    for (u64 i = threadIdx.x; i < width; i += blockDim.x) put(&x[i], widen(x[i]) + bias[i]);
}

// Of chunk blockIdx.y: partial[column] = sum over its rows of x. Blocks of 32 columns by 8 rows.
template <typename X> __device__ void sum_chunks(u64 rows, u64 width, u64 chunk_rows, const X *x, f32 *partial) {
    __shared__ f32 lanes[8][32];
    u64 column = (u64)blockIdx.x * 32 + threadIdx.x;
    u64 first = blockIdx.y * chunk_rows;
    u64 end = first + chunk_rows < rows ? first + chunk_rows : rows;
    f32 sum = 0.0f;
    if (column < width) {
        for (u64 row = first + threadIdx.y; row < end; row += 8) sum += widen(x[row * width + column]);
    }
    lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && column < width) {
        for (u32 lane = 1; lane < 8; lane++) sum += lanes[lane][threadIdx.x];
        partial[blockIdx.y * width + column] = sum;
    }
}

// target[column] += the sum over chunks of partial[chunk][column], in order. A thread for each column.
extern "C" __global__ void add_chunks(u64 width, u64 chunks, const f32 *partial, f32 *target) {
    u64 column = element_index();
    if (column >= width) return;
    f32 sum = 0.0f;
    for (u64 chunk = 0; chunk < chunks; chunk++) sum += partial[chunk * width + column];
    target[column] += sum;
}

// A block for each target row: columns of row / repeat of the source.
template <typename X>
__device__ void copy_columns(u64 columns, u64 source_width, u64 source_start, u64 target_width, u64 target_start,
                             u64 repeat, const X *source, X *target) {
    source += blockIdx.x / repeat * source_width + source_start;
    target += blockIdx.x * target_width + target_start;
    for (u64 i = threadIdx.x; i < columns; i += blockDim.x) target[i] = source[i];
}

// A block for each target row: the sum of `repeat` source rows, in order.
template <typename X>
__device__ void sum_columns(u64 columns, u64 source_width, u64 source_start, u64 target_width, u64 target_start,
                            u64 repeat, const X *source, X *target) {
    source += blockIdx.x * repeat * source_width + source_start;
    target += blockIdx.x * target_width + target_start;
    for (u64 i = threadIdx.x; i < columns; i += blockDim.x) {
        f32 sum = 0.0f;
        for (u64 row = 0; row < repeat; row++) sum += widen(source[row * source_width + i]);
        put(&target[i], sum);
    }
}

// target += source, a thread for each element
template <typename S, typename T> __device__ void add(u64 len, const S *source, T *target) {
    u64 i = element_index();
    if (i < len) put(&target[i], widen(target[i]) + widen(source[i]));
}

// target = source, a thread for each element
template <typename S, typename T> __device__ void convert(u64 len, const S *source, T *target) {
    u64 i = element_index();
    if (i < len) put(&target[i], widen(source[i]));
}

#define BIAS_FORWARD(X)                                                                                                \
    extern "C" __global__ void bias_forward_##X(u64 width, const f32 *bias, X *x) { bias_forward(width, bias, x); }
EACH_TYPE(BIAS_FORWARD)

#define SUM_CHUNKS(X)                                                                                                  \
    extern "C" __global__ void sum_chunks_##X(u64 rows, u64 width, u64 chunk_rows, const X *x, f32 *partial) {         \
        sum_chunks(rows, width, chunk_rows, x, partial);                                                               \
    }
EACH_TYPE(SUM_CHUNKS)

#define COLUMNS(X)                                                                                                     \
    extern "C" __global__ void copy_columns_##X(u64 columns, u64 source_width, u64 source_start, u64 target_width,     \
                                                u64 target_start, u64 repeat, const X *source, X *target) {            \
        copy_columns(columns, source_width, source_start, target_width, target_start, repeat, source, target);         \
    }                                                                                                                  \
    extern "C" __global__ void sum_columns_##X(u64 columns, u64 source_width, u64 source_start, u64 target_width,      \
                                               u64 target_start, u64 repeat, const X *source, X *target) {             \
        sum_columns(columns, source_width, source_start, target_width, target_start, repeat, source, target);          \
    }
EACH_TYPE(COLUMNS)

#define ELEMENTWISE(S, T)                                                                                              \
    extern "C" __global__ void add_##S##_##T(u64 len, const S *source, T *target) { add(len, source, target); }        \
    extern "C" __global__ void convert_##S##_##T(u64 len, const S *source, T *target) { convert(len, source, target); }
EACH_PAIR(ELEMENTWISE)
