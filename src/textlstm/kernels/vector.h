/* Registers of floats, and the exponential of which `kernels.exponential` is the reference.
 *
 * One source for three instruction sets (see build.sh): KIND is the suffix of every name, LANES the floats of a register,
 * DOT whether the processor sums products of bytes by itself (VNNI).
 */
#include <immintrin.h>
#include <stdint.h>

#define JOIN2(a, b) a##_##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(name) JOIN(name, KIND)

typedef float vec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }
static inline vec to_float(ivec v) { return __builtin_convertvector(v, vec); }
#if LANES == 16
static inline vec all(float x) { return (vec)_mm512_set1_ps(x); }
static inline vec nearest(vec x) { return (vec)_mm512_roundscale_ps((__m512)x, 8); }
static inline vec larger(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vec smaller(vec a, vec b) { return (vec)_mm512_min_ps((__m512)a, (__m512)b); }
static inline ivec whole(vec x) { return (ivec)_mm512_cvttps_epi32((__m512)x); }
#else
static inline vec all(float x) { return (vec)_mm256_set1_ps(x); }
static inline vec nearest(vec x) { return (vec)_mm256_round_ps((__m256)x, 8); }
static inline vec larger(vec a, vec b) { return (vec)_mm256_max_ps((__m256)a, (__m256)b); }
static inline vec smaller(vec a, vec b) { return (vec)_mm256_min_ps((__m256)a, (__m256)b); }
static inline ivec whole(vec x) { return (ivec)_mm256_cvttps_epi32((__m256)x); }
#endif

static inline vec exponential(vec x)
{
    x = smaller(all(88.0f), larger(all(-87.0f), x));
    vec n = nearest(x * 1.44269504f), r = x - n * 0.693145752f - n * 1.42860677e-6f, p = all(1.0f / 5040);
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (vec)((whole(n) + 127) << 23);
}
