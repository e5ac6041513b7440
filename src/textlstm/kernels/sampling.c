/* One draw per row, as `textlstm.sampling` does it in numpy, to the bit: a token's weight is a whole number, so sums are
 * exact in any order. What a row keeps is found without sorting, by counting the leading bits of its logits. */
#include "vector.h"

struct row {
    double temperature, top_p, least; /* least: logarithm of min_p, -inf where it is off */
    double mark; /* a number from 0 to 1 */
    int64_t top_k; /* 0 is off */
    const uint8_t *banned; /* or null */
};

#define SCALE 1073741824.0f /* 2^30, the weight of the likeliest token */
#define REMOVED UINT32_MAX

/* The distance of a logit below the best one; its bits sort like the number. */
static inline uint32_t key(float x) { return (union { float f; uint32_t u; }){-x + 0.0f}.u; }

/* The smallest key up to which keys weigh as much as is wanted, and what those below it weigh; each weighs 1 if there are
 * no weights. The largest key where they never do. */
static uint32_t reach(int64_t V, const uint32_t *keys, const int32_t *weights, double wanted, int64_t *below)
{
    static const int shifts[3] = {21, 10, 0}, bits[3] = {11, 11, 10};
    uint32_t prefix = 0;
    *below = 0;
    for (int level = 0; level < 3; level++) {
        int64_t sums[2048];
        int buckets = 1 << bits[level], last = 0, above = shifts[level] + bits[level];
        for (int i = 0; i < buckets; i++) sums[i] = 0;
        for (int64_t v = 0; v < V; v++)
            if (keys[v] != REMOVED && (level == 0 || keys[v] >> above == prefix >> above)) {
                int bucket = keys[v] >> shifts[level] & (buckets - 1);
                sums[bucket] += weights ? weights[v] : 1;
                last = bucket > last ? bucket : last;
            }
        int bucket = 0;
        while (bucket < last && (double)(*below + sums[bucket]) < wanted) *below += sums[bucket++];
        prefix |= (uint32_t)bucket << shifts[level];
    }
    return prefix;
}

static void keep_likeliest(int64_t V, uint32_t *keys, int64_t k)
{
    int64_t below;
    uint32_t last = reach(V, keys, 0, (double)k, &below);
    for (int64_t v = 0; v < V; v++)
        if (keys[v] > last) keys[v] = REMOVED;
}

static void weigh(int64_t V, const float *x, int32_t *weights)
{
    int64_t v = 0;
    for (; v + LANES <= V; v += LANES) *(ivec *)(weights + v) = whole(nearest(exponential(load(x + v)) * SCALE));
    float rest[LANES] = {0};
    int32_t ends[LANES];
    for (int64_t i = v; i < V; i++) rest[i - v] = x[i];
    *(ivec *)ends = whole(nearest(exponential(load(rest)) * SCALE));
    for (int64_t i = v; i < V; i++) weights[i] = ends[i - v];
}

static void drop_removed(int64_t V, const uint32_t *keys, int32_t *weights)
{
    for (int64_t v = 0; v < V; v++) weights[v] = keys[v] == REMOVED ? 0 : weights[v];
}

static int64_t total(int64_t V, const int32_t *weights)
{
    int64_t sum = 0;
    for (int64_t v = 0; v < V; v++) sum += weights[v];
    return sum;
}

/* The smallest set of the likeliest tokens that reaches the mass; of equal ones at its edge the lowest ids. */
static void keep_mass(int64_t V, uint32_t *keys, int32_t *weights, double mass)
{
    int64_t below;
    double wanted = mass * (double)total(V, weights);
    uint32_t last = reach(V, keys, weights, wanted, &below);
    int begun = 0;
    for (int64_t v = 0; v < V; v++)
        if (keys[v] == last) {
            if (begun && (double)below >= wanted) keys[v] = REMOVED;
            else below += weights[v];
            begun = 1;
        } else if (keys[v] > last) keys[v] = REMOVED;
    drop_removed(V, keys, weights);
}

/* x becomes the logits, -inf where banned. The largest of them; NaN where a logit is NaN or infinity. */
static float begin(int64_t V, const float *logits, const uint8_t *banned, float *x)
{
    int finite = 1;
    for (int64_t v = 0; v < V; v++) finite &= logits[v] < __builtin_inff(); /* false for NaN too */
    if (!finite) return __builtin_nanf("");
    if (banned)
        for (int64_t v = 0; v < V; v++) x[v] = banned[v] ? -__builtin_inff() : logits[v];
    else
        for (int64_t v = 0; v < V; v++) x[v] = logits[v];
    vec tops = all(-__builtin_inff());
    int64_t v = 0;
    for (; v + LANES <= V; v += LANES) tops = larger(tops, load(x + v));
    float peaks[LANES], top = -__builtin_inff();
    store(peaks, tops);
    for (int i = 0; i < LANES; i++) top = peaks[i] > top ? peaks[i] : top;
    for (; v < V; v++) top = x[v] > top ? x[v] : top;
    return top;
}

static int64_t pick(int64_t V, const int32_t *weights, double mark)
{
    int64_t sum = total(V, weights), place = (int64_t)(mark * (double)sum), v = 0;
    place = place < sum ? place : sum - 1;
    for (int64_t reached = weights[0]; reached <= place; reached += weights[++v])
        ;
    return v;
}

/* ids (B) of logits (B, V); scratch holds 3 V numbers of 32 bits. -1 for a row that has no likeliest token. */
void NAME(draw)(int64_t B, int64_t V, const float *logits, const struct row *rows, void *scratch, int64_t *ids)
{
    float *x = scratch;
    uint32_t *keys = (uint32_t *)x + V;
    int32_t *weights = (int32_t *)keys + V;
    for (int64_t b = 0; b < B; b++, rows++) {
        float top = begin(V, logits + b * V, rows->banned, x);
        ids[b] = -1;
        if (!(top > -__builtin_inff())) continue;
        if (rows->temperature == 0) {
            for (ids[b] = 0; x[ids[b]] != top; ids[b]++)
                ;
            continue;
        }
        double clipped = rows->temperature > 1e-30 ? rows->temperature : 1e-30;
        float temperature = (float)(clipped < 1e30 ? clipped : 1e30);
        for (int64_t v = 0; v < V; v++) x[v] = (x[v] - top) / temperature;
        weigh(V, x, weights);
        int few = rows->top_k > 0 && rows->top_k < V, nucleus = rows->top_p < 1;
        if (few || nucleus) {
            for (int64_t v = 0; v < V; v++) keys[v] = x[v] == -__builtin_inff() ? REMOVED : key(x[v]);
            if (few) keep_likeliest(V, keys, rows->top_k);
            drop_removed(V, keys, weights);
            if (nucleus) keep_mass(V, keys, weights, rows->top_p);
        }
        if (rows->least > -__builtin_inf())
            for (int64_t v = 0; v < V; v++)
                if (!((double)x[v] >= rows->least)) weights[v] = 0;
        ids[b] = pick(V, weights, rows->mark);
    }
}
