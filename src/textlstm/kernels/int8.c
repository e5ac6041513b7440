/* The int8 arithmetic of `textlstm.engine.int8`, which has the equations in numpy: this does the same, bit for bit.
 *
 * Integer sums are exact, and every operation on floats is one that IEEE 754 defines, in a fixed order and never fused,
 * so the result does not depend on the instruction set, the batch or the cut of a text.
 *
 * A matrix is stored in panels of 64 outputs: for each 4 inputs 4 groups of 16 outputs, for each output 4 bytes. In an
 * LSTM layer the groups are the gates i, f, g, o of 16 units. One core is enough: a step of two layers of 384 units
 * takes it 60 microseconds, and waiting for a second core costs more than that core saves where anything else runs.
 */
#include "vector.h"

typedef int8_t bvec __attribute__((vector_size(LANES), aligned(1), may_alias));
typedef int32_t word __attribute__((aligned(1), may_alias));
#define PARTS (16 / LANES) /* registers for 16 floats */

/* q (N outputs, K inputs) in panels, and for each output its scale and -128 times the sum of its weights. */
struct matrix {
    int64_t outputs, inputs, panels;
    const int8_t *weights;
    const float *scale, *bias;
    const int32_t *offset;
};

struct layer {
    struct matrix input, recurrent;
};

struct model {
    int64_t vocab, embed, hidden, layers;
    const int8_t *embedding; /* (V, I) what the first layer reads */
    const float *embedding_scale;
    const struct layer *layer;
    const struct matrix *projection; /* or null */
    const struct matrix *head;
    float *table; /* (V, panels, 64): the first layer's products, filled as tokens are met; or null */
    uint8_t *known; /* (V) */
};

struct job {
    int64_t rows, steps, wanted; /* B, T, P */
    const int64_t *ids, *positions; /* (B, T), (P) */
    const float *h_before, *c_before; /* (L, B, H) */
    float *h_after, *c_after, *logits; /* logits (B, P, V) */
    float *gates, *outputs, *projected; /* scratch: (B T, panels, 64), two of (B T, H), (B P, E) */
    int8_t *bytes; /* scratch: (B T, K) or (B P, K), and (B, K), K the longest input rounded up to 64 */
    float *scales; /* scratch: as many as rows of bytes */
    int64_t longest;
};

/* ---- floats ---------------------------------------------------------------------------------------------------- */

static inline vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }
static inline vec hyperbolic(vec x) { return 1.0f - 2.0f / (1.0f + exponential(x + x)); }

static inline void copy(float *to, const float *from, int64_t n)
{
    for (int64_t i = 0; i < n; i++) to[i] = from[i];
}

/* Copies of at most 16 floats; nearly all are of 16, without a loop. */
static inline void copy_units(float *to, const float *from, int64_t n)
{
    if (n < 16) copy(to, from, n);
    else
        for (int i = 0; i < 16; i += LANES) store(to + i, load(from + i));
}

/* Bytes for a row of K floats, and the scale they are multiplied by; DOT wants them from 0 to 255. */
static float quantise(const float *x, int64_t K, int8_t *q)
{
    vec top = all(0.0f);
    float last[16] = {0}, peaks[LANES], peak = 0.0f;
    int64_t K16 = K & ~15L;
    copy(last, x + K16, K - K16);
    for (int64_t k = 0; k < K16; k += LANES) top = larger(top, larger(load(x + k), -load(x + k)));
    for (int64_t k = 0; k < 16; k += LANES) top = larger(top, larger(load(last + k), -load(last + k)));
    store(peaks, top);
    for (int i = 0; i < LANES; i++) peak = peaks[i] > peak ? peaks[i] : peak;
    float factor = peak > 0.0f ? 127.0f / peak : 0.0f;
    for (int64_t k = 0; k < K; k += LANES) {
        bvec b = __builtin_convertvector(whole(nearest(load(k < K16 ? x + k : last + k - K16) * factor)), bvec);
        *(bvec *)(q + k) = b ^ (int8_t)(DOT ? -128 : 0);
    }
    return peak / 127.0f;
}

/* ---- bytes ----------------------------------------------------------------------------------------------------- */

#if LANES == 16
static inline ivec dot(ivec sum, ivec x, ivec w) { return (ivec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)x, (__m512i)w); }
static inline ivec four(const int8_t *x) { return (ivec)_mm512_set1_epi32(*(const word *)x); }
#define BLOCK_ROWS 6
#elif DOT
static inline ivec dot(ivec sum, ivec x, ivec w)
{
    return (ivec)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)x, (__m256i)w);
}
static inline ivec four(const int8_t *x) { return (ivec)_mm256_set1_epi32(*(const word *)x); }
#define BLOCK_ROWS 2
#else
/* |x| <= 127 and |w| <= 127, so that two products fit in 16 bits. */
static inline ivec dot(ivec sum, ivec x, ivec w)
{
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)x), _mm256_sign_epi8((__m256i)w, (__m256i)x));
    return sum + (ivec)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
}
static inline ivec four(const int8_t *x) { return (ivec)_mm256_set1_epi32(*(const word *)x); }
#define BLOCK_ROWS 2
#endif

/* sums (R, 64) = bytes (R, K) times a panel, from `offset` on. A lone row takes two chains, or it would wait for sums. */
#define BLOCK(R, CHAINS)                                                                                          \
    static void block_##R(int64_t K, const int8_t *x, int64_t stride, const int8_t *w, const int32_t *offset,      \
                          int32_t *sums)                                                                           \
    {                                                                                                              \
        for (int part = 0; part < PARTS; part++) {                                                                 \
            ivec acc[R][4][CHAINS];                                                                                \
            _Pragma("GCC unroll 6") for (int r = 0; r < R; r++)                                                    \
                _Pragma("GCC unroll 4") for (int g = 0; g < 4; g++)                                                \
                {                                                                                                  \
                    acc[r][g][CHAINS - 1] = (ivec){};                                                              \
                    acc[r][g][0] = DOT ? *(const ivec *)(offset + g * 16 + part * LANES) : (ivec){};               \
                }                                                                                                  \
            const int8_t *panel = w + part * LANES * 4;                                                            \
            for (int64_t k = 0; k < K; k += 4 * CHAINS)                                                            \
                _Pragma("GCC unroll 2") for (int chain = 0; chain < CHAINS; chain++, panel += 256)                 \
                {                                                                                                  \
                    ivec weights[4];                                                                               \
                    _Pragma("GCC unroll 4") for (int g = 0; g < 4; g++) weights[g] = *(const ivec *)(panel + 64 * g); \
                    _Pragma("GCC unroll 6") for (int r = 0; r < R; r++)                                            \
                    {                                                                                              \
                        ivec in = four(x + r * stride + k + 4 * chain);                                            \
                        _Pragma("GCC unroll 4") for (int g = 0; g < 4; g++)                                        \
                            acc[r][g][chain] = dot(acc[r][g][chain], in, weights[g]);                              \
                    }                                                                                              \
                }                                                                                                  \
            _Pragma("GCC unroll 6") for (int r = 0; r < R; r++)                                                    \
                _Pragma("GCC unroll 4") for (int g = 0; g < 4; g++)                                                \
                {                                                                                                  \
                    if (CHAINS == 2) acc[r][g][0] += acc[r][g][CHAINS - 1];                                        \
                    *(ivec *)(sums + r * 64 + g * 16 + part * LANES) = acc[r][g][0];                               \
                }                                                                                                  \
        }                                                                                                          \
    }
BLOCK(1, 2)
BLOCK(2, 1)
#if BLOCK_ROWS > 2
BLOCK(3, 1)
BLOCK(4, 1)
BLOCK(5, 1)
BLOCK(6, 1)
#endif

#if TILES
/* A panel is already what tiles multiply by: 16 rows of 4 inputs, 256 bytes apart, of 16 outputs. */
#define ROWS 16
struct shape {
    uint8_t palette, unused[15];
    uint16_t bytes[16];
    uint8_t rows[16];
};

/* Tiles 0 to 3: sums of R rows and 16 outputs. 4 and 5: 64 inputs, 6 and 7: the last K % 64 of them. */
static void shape_tiles(int64_t R, int64_t K)
{
    struct shape s;
    int64_t rest = K % 64 ? K % 64 : 64;
    s.palette = 1;
    for (int i = 0; i < 15; i++) s.unused[i] = 0;
    for (int i = 0; i < 16; i++) {
        s.bytes[i] = i > 7 ? 0 : i == 6 ? rest : 64;
        s.rows[i] = i > 7 ? 0 : i == 7 ? rest / 4 : i == 5 ? 16 : R;
    }
    __asm__ volatile("" ::"m"(s)); /* all of it must be written: gcc takes its first bytes for enough */
    _tile_loadconfig(&s);
}

/* The same as the blocks above, for the R rows that the tiles are shaped for. */
static void block_of_tiles(int64_t K, const int8_t *x, int64_t stride, const int8_t *w, const int32_t *offset,
                           int32_t *sums)
{
    __asm__ volatile("" ::: "memory"); /* gcc does not know that tiles are read from memory, nor that they are stored */
    _tile_loadd(0, offset, 0); /* the same for every row */
    _tile_loadd(1, offset + 16, 0);
    _tile_loadd(2, offset + 32, 0);
    _tile_loadd(3, offset + 48, 0);
#define ADD(A, B, GROUP)                       \
    _tile_loadd(B, w + k * 64 + GROUP * 64, 256); \
    _tile_dpbusd(GROUP, A, B);
    int64_t k = 0;
    for (; k + 64 <= K; k += 64) {
        _tile_loadd(4, x + k, stride);
        ADD(4, 5, 0)
        ADD(4, 5, 1)
        ADD(4, 5, 2)
        ADD(4, 5, 3)
    }
    if (k < K) {
        _tile_loadd(6, x + k, stride);
        ADD(6, 7, 0)
        ADD(6, 7, 1)
        ADD(6, 7, 2)
        ADD(6, 7, 3)
    }
    _tile_stored(0, sums, 256);
    _tile_stored(1, sums + 16, 256);
    _tile_stored(2, sums + 32, 256);
    _tile_stored(3, sums + 48, 256);
    __asm__ volatile("" ::: "memory");
}
#else
#define ROWS BLOCK_ROWS
#endif

/* One panel for R <= ROWS rows; K is a multiple of 8, filled up with zeros. `shaped` is how many rows the tiles are shaped
 * for, 0 at first. */
static void product(const struct matrix *m, int64_t panel, int64_t R, const int8_t *x, int64_t stride, int32_t *sums,
                    int64_t *shaped)
{
    int64_t K = (m->inputs + 7) & ~7L;
    const int8_t *w = m->weights + panel * K * 64;
    const int32_t *offset = m->offset + panel * 64;
    switch (R) {
    case 1: block_1(K, x, stride, w, offset, sums); break;
    case 2: block_2(K, x, stride, w, offset, sums); break;
#if BLOCK_ROWS > 2
    case 3: block_3(K, x, stride, w, offset, sums); break;
    case 4: block_4(K, x, stride, w, offset, sums); break;
    case 5: block_5(K, x, stride, w, offset, sums); break;
    case 6: block_6(K, x, stride, w, offset, sums); break;
#endif
#if TILES
    default:
        if (*shaped != R) shape_tiles(R, K);
        *shaped = R;
        block_of_tiles(K, x, stride, w, offset, sums);
#endif
    }
    (void)shaped;
}

/* y (N, outputs) = product + bias. */
static void linear(const struct matrix *m, int64_t N, const int8_t *x, int64_t stride, const float *scales, float *y,
                   int64_t outputs)
{
    int32_t sums[ROWS * 64];
    int64_t shaped = 0;
    for (int64_t p = 0; p < m->panels; p++)
        for (int64_t n = 0; n < N; n += ROWS) {
            int64_t R = N - n < ROWS ? N - n : ROWS, room = outputs - p * 64;
            product(m, p, R, x + n * stride, stride, sums, &shaped);
            for (int64_t r = 0; r < R; r++) {
                float whole_panel[64], *to_row = y + (n + r) * outputs + p * 64, *out = room < 64 ? whole_panel : to_row;
                for (int64_t i = 0; i < 64; i += LANES)
                    store(out + i, to_float(*(const ivec *)(sums + r * 64 + i)) *
                                       (load(m->scale + p * 64 + i) * scales[n + r]) + load(m->bias + p * 64 + i));
                if (room < 64) copy(to_row, whole_panel, room);
            }
        }
}

/* ---- the network ----------------------------------------------------------------------------------------------- */

#define MOST_ROWS 1024

/* What the first layer reads for a token. */
static void embed(const struct model *m, int64_t id, int8_t *x)
{
    int64_t K = m->embed, filled = (K + 7) & ~7L;
    for (int64_t k = 0; k < K; k++) x[k] = m->embedding[id * K + k] ^ (int8_t)(DOT ? -128 : 0);
    for (int64_t k = K; k < filled; k++) x[k] = 0;
}

/* The first layer's products of one token, computed once. */
static const float *first_products(const struct model *m, int64_t id, int8_t *x)
{
    const struct matrix *w = &m->layer[0].input;
    float *row = m->table + id * w->panels * 64;
    if (!m->known[id]) {
        embed(m, id, x);
        linear(w, 1, x, 0, m->embedding_scale + id, row, w->panels * 64);
        m->known[id] = 1;
    }
    return row;
}

/* Asks for the products of one row and panel before they are needed: those of the rows lie far apart. */
static inline void fetch(const float *products)
{
    for (int i = 0; i < 64; i += 16) __builtin_prefetch(products + i);
}

/* One time step of a layer: from W x + b and the state before to the state after. */
static void cells(const struct matrix *w, int64_t H, int64_t B, const int8_t *x, int64_t stride, const float *scales,
                  const float *const *products, const float *c_before, float *c_after, float *h_after, int64_t h_row)
{
    int32_t sums[ROWS * 64];
    int64_t shaped = 0;
    for (int64_t p = 0; p < w->panels; p++)
        for (int64_t b = 0; b < B; b += ROWS) {
            int64_t R = B - b < ROWS ? B - b : ROWS, units = H - p * 16 < 16 ? H - p * 16 : 16;
            for (int64_t r = 0; r < R && p + 1 < w->panels; r++) fetch(products[b + r] + (p + 1) * 64);
            product(w, p, R, x + b * stride, stride, sums, &shaped);
            for (int64_t r = 0; r < R; r++) {
                float c[16] = {0}, h[16];
                copy_units(c, c_before + (b + r) * H + p * 16, units);
                for (int64_t u = 0; u < 16; u += LANES) {
                    vec z[4];
                    for (int64_t g = 0; g < 4; g++) {
                        int64_t i = g * 16 + u;
                        z[g] = load(products[b + r] + p * 64 + i) +
                               to_float(*(const ivec *)(sums + r * 64 + i)) * (load(w->scale + p * 64 + i) * scales[b + r]);
                    }
                    vec cell = sigmoid(z[1]) * load(c + u) + sigmoid(z[0]) * hyperbolic(z[2]);
                    store(c + u, cell);
                    store(h + u, sigmoid(z[3]) * hyperbolic(cell));
                }
                copy_units(c_after + (b + r) * H + p * 16, c, units);
                copy_units(h_after + (b + r) * h_row + p * 16, h, units);
            }
        }
}

/* A layer over all steps; y (B, T, H) becomes its outputs, and below (B, T, H) are those of the layer before. */
static void layer(const struct model *m, const struct job *job, int64_t l, const float *below, float *y)
{
    int64_t B = job->rows, T = job->steps, N = B * T, H = m->hidden, K = job->longest;
    const struct layer *now = m->layer + l;
    int64_t width = now->input.panels * 64;
    int8_t *state_bytes = job->bytes + N * K;
    float *state_scales = job->scales + N;
    int table = l == 0 && m->table;
    for (int64_t n = 0; n < N && !table; n++)
        if (l) job->scales[n] = quantise(below + n * H, H, job->bytes + n * K);
        else {
            embed(m, job->ids[n], job->bytes + n * K);
            job->scales[n] = m->embedding_scale[job->ids[n]];
        }
    if (!table) linear(&now->input, N, job->bytes, K, job->scales, job->gates, width);
    const float *products[MOST_ROWS], *h = job->h_before + l * B * H, *c = job->c_before + l * B * H;
    float *h_after = job->h_after + l * B * H, *c_after = job->c_after + l * B * H;
    for (int64_t t = 0; t < T; t++) {
        for (int64_t b = 0; b < B; b++) {
            products[b] = table ? first_products(m, job->ids[b * T + t], state_bytes + b * K)
                                : job->gates + (b * T + t) * width;
            state_scales[b] = quantise(t ? y + (b * T + t - 1) * H : h + b * H, H, state_bytes + b * K);
        }
        cells(&now->recurrent, H, B, state_bytes, K, state_scales, products, t ? c_after : c, c_after, y + t * H, T * H);
    }
    for (int64_t b = 0; b < B; b++) copy(h_after + b * H, y + (b * T + T - 1) * H, H);
}

/* ---- called from Python ---------------------------------------------------------------------------------------- */

#if TILES
/* Asks the system for the tiles, which it gives to a process that asks: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA). 0 if
 * they are given. */
int64_t NAME(ask)(void)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(158L), "D"(0x1023L), "S"(18L) : "rcx", "r11", "memory");
    return result;
}
#endif

/* 0, or 1 if an id or a position is none: then nothing is computed. */
int64_t NAME(run)(const struct model *m, const struct job *job)
{
    int64_t N = job->rows * job->steps, M = job->rows * job->wanted, H = m->hidden, K = job->longest, wrong = 0;
    for (int64_t n = 0; n < N; n++) wrong |= job->ids[n] < 0 || job->ids[n] >= m->vocab;
    for (int64_t p = 0; p < job->wanted; p++) wrong |= job->positions[p] < 0 || job->positions[p] >= job->steps;
    if (wrong) return 1;
    float *y[2] = {job->outputs, job->outputs + N * H};
    for (int64_t l = 0; l < m->layers; l++) layer(m, job, l, y[~l & 1], y[l & 1]);
    const float *top = y[~m->layers & 1];
    for (int64_t n = 0; n < M; n++) {
        int64_t place = n / job->wanted * job->steps + job->positions[n % job->wanted];
        job->scales[n] = quantise(top + place * H, H, job->bytes + n * K);
    }
    if (m->projection) {
        int64_t E = m->projection->outputs;
        linear(m->projection, M, job->bytes, K, job->scales, job->projected, E);
        for (int64_t n = 0; n < M; n++) job->scales[n] = quantise(job->projected + n * E, E, job->bytes + n * K);
    }
    linear(m->head, M, job->bytes, K, job->scales, job->logits, m->vocab);
#if TILES
    _tile_release(); /* else the system saves their 8 kB whenever it changes threads */
#endif
    return 0;
}

/* q (N, K) into panels. Output u of group g of panel p is row p panel_stride + g group_stride + u; of each group there
 * are `units` rows in all, and the rest is zero. */
void NAME(pack)(int64_t inputs, int64_t panels, int64_t panel_stride, int64_t group_stride, int64_t units,
                const int8_t *q, int8_t *to, int32_t *offset)
{
    int64_t K = (inputs + 7) & ~7L;
    for (int64_t p = 0; p < panels; p++)
        for (int64_t g = 0; g < 4; g++)
            for (int64_t u = 0; u < 16; u++) {
                int64_t row = p * panel_stride + g * group_stride + u;
                int kept = panel_stride == 64 ? row < units : p * 16 + u < units;
                int8_t *out = to + p * K * 64 + g * 64 + u * 4;
                int32_t sum = 0;
                for (int64_t k = 0; k < K; k++) {
                    int8_t w = kept && k < inputs ? q[row * inputs + k] : 0;
                    out[k / 4 * 256 + k % 4] = w;
                    sum += w;
                }
                offset[p * 64 + g * 16 + u] = -128 * sum;
            }
}
