/* The recurrent half of an LSTM layer in training, of which `network.reference_lstm` has the equations: what is left when
 * the products over all time steps at once are taken by sgemm.
 *
 * Shape letters as in network.py: T time, B rows, H hidden, a multiple of 32. Gates in the order i, f, g, o. Each thread
 * owns some hidden units, for all rows, so the result does not depend on their number; after each step all wait for each
 * other, because the next step reads every unit. The threads are OpenMP's, which runs these functions on those that take
 * sgemm's products as well: threads of our own would sleep and be woken between the two.
 */
#include <stdatomic.h>

#include "vector.h"

struct recurrence {
    int (*number)(void), (*count)(void); /* omp_get_thread_num and omp_get_num_threads; null outside of OpenMP */
    int64_t steps, rows, hidden; /* T, B, H */
    atomic_long arrived; /* begins at 0 */
    const float *weight; /* U (4H, H) */
    float *packed; /* scratch as large as U */
    float *gates; /* (T, B, 4H): W x + b, and from `forward` on the gates */
    float *h, *c; /* (T + 1, B, H), the first row the state before */
    float *grads; /* (T, B, H): d loss / d output of each step, that of the last state added to the last; used up */
    float *grad_c; /* (B, H): d loss / d c, at first of the last state, in the end of the state before */
    float *grad_gates; /* (T, B, 4H): d loss / d (W x + U h + b), which `backward` computes */
};

#define ROWS 12 /* of a block: 12 x 2 of 32 registers add up, the others hold weights and inputs */

static inline vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }
static inline vec hyperbolic(vec x) { return 1.0f - 2.0f / (1.0f + exponential(x + x)); }

/* acc[r][0..1] += in[r][k] * panel[k][0..1] for R rows. */
#define BLOCK(R)                                                                                                  \
    static inline __attribute__((always_inline)) void block_##R(                                                  \
        long K, const float *in, long in_row, const float *panel, float *a, float *b, long out_row)               \
    {                                                                                                             \
        vec acc[R][2];                                                                                            \
        _Pragma("GCC unroll 12") for (int r = 0; r < R; r++)                                                      \
        {                                                                                                         \
            acc[r][0] = load(a + r * out_row);                                                                    \
            acc[r][1] = load(b + r * out_row);                                                                    \
        }                                                                                                         \
        for (long k = 0; k < K; k++) {                                                                            \
            vec w0 = load(panel + k * 2 * LANES), w1 = load(panel + k * 2 * LANES + LANES);                    \
            _Pragma("GCC unroll 12") for (int r = 0; r < R; r++)                                                  \
            {                                                                                                     \
                vec x = all(in[r * in_row + k]);                                                                  \
                acc[r][0] += x * w0;                                                                              \
                acc[r][1] += x * w1;                                                                              \
            }                                                                                                     \
        }                                                                                                         \
        _Pragma("GCC unroll 12") for (int r = 0; r < R; r++)                                                      \
        {                                                                                                         \
            store(a + r * out_row, acc[r][0]);                                                                    \
            store(b + r * out_row, acc[r][1]);                                                                    \
        }                                                                                                         \
    }
BLOCK(1)
BLOCK(2)
BLOCK(3)
BLOCK(4)
BLOCK(5)
BLOCK(6)
BLOCK(7)
BLOCK(8)
BLOCK(9)
BLOCK(10)
BLOCK(11)
BLOCK(12)

static void rows(long R, long K, const float *in, long in_row, const float *panel, float *a, float *b, long out_row)
{
#define CASE(N)                                         \
    case N:                                             \
        block_##N(K, in, in_row, panel, a, b, out_row); \
        break;
    switch (R) {
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
        CASE(5)
        CASE(6)
        CASE(7)
        CASE(8)
        CASE(9)
        CASE(10)
        CASE(11)
        CASE(12)
    }
}

/* The same for any number of rows, in blocks of nearly equal size. */
static void product(long B, long K, const float *in, long in_row, const float *panel, float *a, float *b, long out_row)
{
    long blocks = (B + ROWS - 1) / ROWS;
    for (long i = 0; i < blocks; i++) {
        long first = i * B / blocks, R = (i + 1) * B / blocks - first;
        rows(R, K, in + first * in_row, in_row, panel, a + first * out_row, b + first * out_row, out_row);
    }
}

/* All threads have come this far. `arrived` begins at 0 and counts on; `round` is each thread's own. */
static inline void meet(atomic_long *arrived, long threads, long *round)
{
    if (threads == 1) return;
    long wanted = ++*round * threads;
    atomic_fetch_add_explicit(arrived, 1, memory_order_acq_rel);
    for (long spins = 0; atomic_load_explicit(arrived, memory_order_acquire) < wanted; spins++)
        if (spins < 1000) _mm_pause();
        else { /* somebody else has the core that the other thread needs: sched_yield */
            long result;
            __asm__ volatile("syscall" : "=a"(result) : "a"(24L) : "rcx", "r11", "memory");
        }
}

/* U (4H, H) as panels: for each 16 units and each pair of gates, the weights of one input after the other. */
static void pack_forward(long from, long to, long H, const float *U, float *packed)
{
    for (long j = from; j < to; j++)
        for (long pair = 0; pair < 2; pair++) {
            float *panel = packed + (j * 2 + pair) * H * 2 * LANES;
            for (long k0 = 0; k0 < H; k0 += LANES)
                for (long gate = 0; gate < 2; gate++)
                    for (long u = 0; u < LANES; u++) {
                        const float *row = U + ((pair * 2 + gate) * H + j * LANES + u) * H;
                        for (long k = k0; k < k0 + LANES; k++) panel[k * 2 * LANES + gate * LANES + u] = row[k];
                    }
        }
}

/* U (4H, H) as panels of 32 columns. */
static void pack_backward(long from, long to, long H, const float *U, float *packed)
{
    for (long j = from; j < to; j++)
        for (long k = 0; k < 4 * H; k++) {
            const float *row = U + k * H + j * 2 * LANES;
            float *to = packed + (j * 4 * H + k) * 2 * LANES;
            store(to, load(row));
            store(to + LANES, load(row + LANES));
        }
}

void NAME(lstm_forward)(struct recurrence *job)
{
    long thread = job->number ? job->number() : 0, threads = job->count ? job->count() : 1, round = 0;
    long T = job->steps, B = job->rows, H = job->hidden, chunks = H / LANES;
    long from = thread * chunks / threads, to = (thread + 1) * chunks / threads;
    float *gates = job->gates, *h = job->h, *c = job->c, *packed = job->packed;
    pack_forward(from, to, H, job->weight, packed);
    for (long t = 0; t < T; t++) {
        const float *h0 = h + t * B * H, *c0 = c + t * B * H;
        float *h1 = h + (t + 1) * B * H, *c1 = c + (t + 1) * B * H, *z = gates + t * B * 4 * H;
        for (long j = from; j < to; j++) {
            long u = j * LANES;
            for (long pair = 0; pair < 2; pair++)
                product(B, H, h0, H, packed + (j * 2 + pair) * H * 2 * LANES, z + pair * 2 * H + u,
                        z + (pair * 2 + 1) * H + u, 4 * H);
            for (long b = 0; b < B; b++) {
                float *zb = z + b * 4 * H + u;
                vec i = sigmoid(load(zb)), f = sigmoid(load(zb + H)), g = hyperbolic(load(zb + 2 * H)),
                    o = sigmoid(load(zb + 3 * H));
                vec cell = f * load(c0 + b * H + u) + i * g;
                store(zb, i), store(zb + H, f), store(zb + 2 * H, g), store(zb + 3 * H, o);
                store(c1 + b * H + u, cell);
                store(h1 + b * H + u, o * hyperbolic(cell));
            }
        }
        meet(&job->arrived, threads, &round);
    }
}

void NAME(lstm_backward)(struct recurrence *job)
{
    long thread = job->number ? job->number() : 0, threads = job->count ? job->count() : 1, round = 0;
    long T = job->steps, B = job->rows, H = job->hidden, chunks = H / (2 * LANES);
    long from = thread * chunks / threads, to = (thread + 1) * chunks / threads;
    const float *gates = job->gates, *c = job->c, *packed = job->packed;
    float *grads = job->grads, *dc = job->grad_c, *dgates = job->grad_gates;
    pack_backward(from, to, H, job->weight, job->packed);
    for (long t = T - 1; t >= 0; t--) {
        const float *z = gates + t * B * 4 * H, *c0 = c + t * B * H, *c1 = c + (t + 1) * B * H;
        float *dh = grads + t * B * H, *dz = dgates + t * B * 4 * H;
        for (long j = from; j < to; j++) {
            long first = j * 2 * LANES;
            if (t < T - 1)
                product(B, 4 * H, dz + B * 4 * H, 4 * H, packed + j * 4 * H * 2 * LANES, dh + first,
                        dh + first + LANES, H);
            for (long u = first; u < first + 2 * LANES; u += LANES)
                for (long b = 0; b < B; b++) {
                    const float *zb = z + b * 4 * H + u;
                    float *to = dz + b * 4 * H + u, *dcell = dc + b * H + u;
                    vec i = load(zb), f = load(zb + H), g = load(zb + 2 * H), o = load(zb + 3 * H);
                    vec tc = hyperbolic(load(c1 + b * H + u)), d = load(dh + b * H + u);
                    vec cell = load(dcell) + d * o * (1.0f - tc * tc);
                    store(to, cell * g * i * (1.0f - i));
                    store(to + H, cell * load(c0 + b * H + u) * f * (1.0f - f));
                    store(to + 2 * H, cell * i * (1.0f - g * g));
                    store(to + 3 * H, d * tc * o * (1.0f - o));
                    store(dcell, cell * f);
                }
        }
        meet(&job->arrived, threads, &round);
    }
}
