// What a race checker says of the ways in which the Hopper GEMMs hand shared memory over, right and wrong, on the machine at hand.
//
//     nvcc -arch=sm_90 -lineinfo -o race_probe tests/kernels/race_probe.cu
//     for way in plain right early late; do compute-sanitizer --tool racecheck ./race_probe $way; done
//
// plain: threads read what others wrote, without a barrier: a race. right: one warp brings stages by bulk copies into a ring, four warps
// wait for each, read it and hand it back, as in kernels/ternary_gemm/sparse_wgmma_ptx.py. early: the same, but they read a stage before they
// wait for it. late: the same, but they hand it back before they read it. The last three differ in the order of three lines.

#include <cstdint>
#include <cstdio>
#include <cstring>

constexpr int RING = 2, STEPS = 16, WORDS = 512, CONSUMERS = 128;
enum Way { PLAIN, RIGHT, EARLY, LATE };

__device__ uint32_t address(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

__device__ void initialize(uint64_t* barrier, int count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address(barrier)), "r"(count) : "memory");
}

__device__ void wait(uint64_t* barrier, int parity) {
    asm volatile(
        "{\n.reg .pred done;\nAGAIN:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra AGAIN;\n}"
        ::"r"(address(barrier)), "r"(parity) : "memory");
}

__device__ void arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 _, [%0];" ::"r"(address(barrier)) : "memory");
}

__device__ void bring(int* to, const int* from, uint64_t* barrier) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(barrier)), "r"(WORDS * 4) : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(address(to)), "l"(from), "r"(WORDS * 4), "r"(address(barrier)) : "memory");
}

__device__ int read(const int* stage) {
    int sum = 0;
    for (int word = threadIdx.x; word < WORDS; word += CONSUMERS) sum += *const_cast<const volatile int*>(stage + word);
    return sum;
}

__device__ void hand_back(uint64_t* empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(empty);
}

__global__ void plain(int* sums) {
    __shared__ int words[CONSUMERS];
    words[threadIdx.x] = threadIdx.x;
    sums[threadIdx.x] = words[CONSUMERS - 1 - threadIdx.x];
}

template <Way WAY>
__global__ void ring(const int* source, int* sums) {
    __shared__ alignas(128) int stages[RING][WORDS];
    __shared__ uint64_t full[RING], empty[RING];
    if (threadIdx.x == 0) {
        for (int i = 0; i < RING; ++i) {
            initialize(full + i, 1);
            initialize(empty + i, CONSUMERS / 32);
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        for (int step = 0; step < STEPS && threadIdx.x == CONSUMERS; ++step) {
            wait(empty + step % RING, (step / RING & 1) ^ 1);
            bring(stages[step % RING], source + step * WORDS, full + step % RING);
        }
        return;
    }
    int sum = 0;
    for (int step = 0; step < STEPS; ++step) {
        if (WAY == EARLY) sum += read(stages[step % RING]);
        wait(full + step % RING, step / RING & 1);
        if (WAY == LATE) hand_back(empty + step % RING);
        if (WAY != EARLY) sum += read(stages[step % RING]);
        if (WAY != LATE) hand_back(empty + step % RING);
    }
    sums[threadIdx.x] = sum;
}

int main(int count, char** arguments) {
    const char* way = count > 1 ? arguments[1] : "";
    int *source, *sums, host[STEPS * WORDS], found[CONSUMERS];
    long sum = 0, expected = 0;
    for (int i = 0; i < STEPS * WORDS; ++i) expected += host[i] = i % 7;
    if (cudaMalloc(&source, sizeof host) != cudaSuccess || cudaMalloc(&sums, sizeof found) != cudaSuccess)
        return std::printf("no device memory\n"), 1;
    cudaMemcpy(source, host, sizeof host, cudaMemcpyHostToDevice);
    if (!strcmp(way, "plain")) plain<<<1, CONSUMERS>>>(sums);
    else if (!strcmp(way, "right")) ring<RIGHT><<<1, CONSUMERS + 32>>>(source, sums);
    else if (!strcmp(way, "early")) ring<EARLY><<<1, CONSUMERS + 32>>>(source, sums);
    else if (!strcmp(way, "late")) ring<LATE><<<1, CONSUMERS + 32>>>(source, sums);
    else return std::printf("usage: %s plain|right|early|late\n", arguments[0]), 2;
    cudaError_t error = cudaMemcpy(found, sums, sizeof found, cudaMemcpyDeviceToHost);
    if (error != cudaSuccess) return std::printf("%s: %s\n", way, cudaGetErrorString(error)), 1;
    for (int value : found) sum += value;
    std::printf("%s: sum %ld, %ld expected of a right one\n", way, sum, expected);
    return strcmp(way, "right") == 0 && sum != expected;
}
