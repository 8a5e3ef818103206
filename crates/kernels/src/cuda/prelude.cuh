// What every kernel file begins with: element types, conversions, entry points by type, sums over a block.
//
// Everything is computed in f32 (sums of squares in f64) and rounded once, when it is stored. A sum is cut by shapes only,
// never by the number of multiprocessors, and its parts are added in a fixed order: no atomic additions.
// Sizes are u64, switches u32, in the order in which the Rust wrapper beside the file passes them.
// Float pointers need the alignment of one element only, since a view may begin anywhere in its buffer.

#include <cuda_bf16.h>

typedef float f32;
typedef __nv_bfloat16 bf16;
typedef unsigned int u32;
typedef unsigned long long u64;

// The most threads that a block has. Blocks that sum have a power of two of them.
#define THREADS_MOST 256

__device__ inline f32 widen(f32 value) { return value; }
__device__ inline f32 widen(bf16 value) { return __bfloat162float(value); }

// To nearest, ties to even.
__device__ inline void put(f32 *target, f32 value) { *target = value; }
__device__ inline void put(bf16 *target, f32 value) { *target = __float2bfloat16_rn(value); }

__device__ inline f32 sigmoid(f32 x) { return 1.0f / (1.0f + expf(-x)); }

// The element that this thread works on where a kernel has a thread for each.
__device__ inline u64 element_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }

// The sum of every thread's value, the same in each of them: a binary tree over the threads.
template <typename T> __device__ inline T block_sum(T value) {
    __shared__ T tree[THREADS_MOST];
    tree[threadIdx.x] = value;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) tree[threadIdx.x] += tree[threadIdx.x + half];
        __syncthreads();
    }
    T sum = tree[0];
    __syncthreads();
    return sum;
}

// The greatest of every thread's values.
__device__ inline f32 block_max(f32 value) {
    __shared__ f32 tree[THREADS_MOST];
    tree[threadIdx.x] = value;
    __syncthreads();
    for (u32 half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) tree[threadIdx.x] = fmaxf(tree[threadIdx.x], tree[threadIdx.x + half]);
        __syncthreads();
    }
    f32 greatest = tree[0];
    __syncthreads();
    return greatest;
}

// Entry points for one, two or three element types; ENTRY defines one and names it by them, as in `add_f32_bf16`.
#define EACH_TYPE(ENTRY) ENTRY(f32) ENTRY(bf16)
#define EACH_PAIR(ENTRY) ENTRY(f32, f32) ENTRY(f32, bf16) ENTRY(bf16, f32) ENTRY(bf16, bf16)
#define EACH_TRIPLE(ENTRY)                                                                                             \
    ENTRY(f32, f32, f32) ENTRY(f32, f32, bf16) ENTRY(f32, bf16, f32) ENTRY(f32, bf16, bf16)                            \
    ENTRY(bf16, f32, f32) ENTRY(bf16, f32, bf16) ENTRY(bf16, bf16, f32) ENTRY(bf16, bf16, bf16)
