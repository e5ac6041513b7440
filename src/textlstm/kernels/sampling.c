/* One draw per row, as `textlstm.sampling` does it in numpy, to the bit: a token's weight is a whole number, so sums are
 * exact in any order. What a row keeps is found without sorting, by counting the leading bits of its logits. */
#include "vector.h"

struct row {
    double mark; /* a number from 0 to 1 */
    double temperature, typical_p, top_p, least; /* least: logarithm of min_p, -inf where it is off */
    double repetition, frequency, presence; /* penalties */
    int64_t top_k; /* 0 is off */
    const uint8_t *banned; /* or null */
    const uint8_t *seen; /* or null: no penalties */
    const int32_t *counts;
};

#define SCALE 1073741824.0f /* 2^30, the weight of the likeliest token */
#define REMOVED UINT32_MAX
#define PARTS 65536.0f /* of which a logit is a whole number where logits are summed */

/* The distance of a logit below the best one; its bits sort like the number. */
static inline uint32_t key(float x) { return (union { float f; uint32_t u; }){-x + 0.0f}.u; }

/* The first bucket up to which sums reach what is wanted, the last that is not empty where they never do. */
static uint32_t find(const int64_t *sums, int buckets, double wanted, int64_t *below)
{
    int last = buckets - 1, bucket = 0;
    while (last > 0 && !sums[last]) last--;
    while (bucket < last && (double)(*below + sums[bucket]) < wanted) *below += sums[bucket++];
    return (uint32_t)bucket;
}

/* Finds the smallest key up to which keys weigh as much as is wanted, the largest where they never do, and what those
 * below it weigh; each weighs 1 if there are no weights. Notes in `left` which tokens have it; returns their number. */
static int64_t reach(
    int64_t V, const uint32_t *keys, const int32_t *weights, double wanted, int64_t *below, int32_t *left)
{
    int64_t sums[4 * 512], n = 0; /* four of each, so that they need not wait for each other */
    for (int i = 0; i < 4 * 512; i++) sums[i] = 0;
    for (int64_t v = 0; v < V; v++) sums[(v & 3) << 9 | keys[v] >> 23] += weights ? weights[v] : 1;
    for (int i = 0; i < 511; i++) sums[i] += sums[512 + i] + sums[1024 + i] + sums[1536 + i]; /* removed ones are 511 */
    *below = 0;
    uint32_t bucket = find(sums, 511, wanted, below);
    for (int64_t v = 0; v < V; v++) {
        left[n] = (int32_t)v;
        n += keys[v] >> 23 == bucket;
    }
    static const int shifts[3] = {15, 7, 0};
    for (int level = 0; level < 3 && n > 1; level++) {
        int shift = shifts[level];
        for (int i = 0; i < 256; i++) sums[i] = 0;
        for (int64_t i = 0; i < n; i++) sums[keys[left[i]] >> shift & 255] += weights ? weights[left[i]] : 1;
        bucket = find(sums, 256, wanted, below);
        int64_t all = n;
        n = 0;
        for (int64_t i = 0; i < all; i++) {
            int32_t v = left[i];
            left[n] = v;
            n += (keys[v] >> shift & 255) == bucket;
        }
    }
    return n;
}

static void remove_above(int64_t V, uint32_t *keys, uint32_t last)
{
    for (int64_t v = 0; v < V; v++) keys[v] = keys[v] > last ? REMOVED : keys[v];
}

static void keep_likeliest(int64_t V, uint32_t *keys, int64_t k, int32_t *room)
{
    int64_t below;
    reach(V, keys, 0, (double)k, &below, room);
    remove_above(V, keys, keys[room[0]]);
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
static void keep_mass(int64_t V, uint32_t *keys, int32_t *weights, double mass, int32_t *room)
{
    int64_t below;
    double wanted = mass * (double)total(V, weights);
    int64_t equal = reach(V, keys, weights, wanted, &below, room);
    remove_above(V, keys, keys[room[0]]);
    for (int64_t i = 1; i < equal; i++) {
        below += weights[room[i - 1]];
        if ((double)below >= wanted) keys[room[i]] = REMOVED;
    }
    drop_removed(V, keys, weights);
}

static int finite(int64_t V, const float *x)
{
    int finite = 1;
    for (int64_t v = 0; v < V; v++) finite &= x[v] < __builtin_inff(); /* false for NaN too; -inf is a removed token */
    return finite;
}

static void penalize(int64_t V, const struct row *row, float *x)
{
    for (int64_t v = 0; v < V; v++)
        if (row->seen[v]) {
            double y = x[v] > 0 ? x[v] / row->repetition : x[v] * row->repetition;
            x[v] = (float)(y - row->counts[v] * row->frequency - (row->counts[v] > 0) * row->presence);
        }
}

static float largest(int64_t V, const float *x)
{
    vec tops = all(-__builtin_inff());
    int64_t v = 0;
    for (; v + LANES <= V; v += LANES) tops = larger(tops, load(x + v));
    float peaks[LANES], top = -__builtin_inff();
    store(peaks, tops);
    for (int i = 0; i < LANES; i++) top = peaks[i] > top ? peaks[i] : top;
    for (; v < V; v++) top = x[v] > top ? x[v] : top;
    return top;
}

/* x becomes the logits after bans and penalties. The largest of them; NaN where one is NaN or infinity. */
static float begin(int64_t V, const float *logits, const struct row *row, float *x)
{
    if (!finite(V, logits)) return __builtin_nanf("");
    if (row->banned)
        for (int64_t v = 0; v < V; v++) x[v] = row->banned[v] ? -__builtin_inff() : logits[v];
    else
        for (int64_t v = 0; v < V; v++) x[v] = logits[v];
    if (row->seen) {
        penalize(V, row, x);
        if (!finite(V, x)) return __builtin_nanf("");
    }
    return largest(V, x);
}

static void make_keys(int64_t V, const float *x, uint32_t *keys)
{
    for (int64_t v = 0; v < V; v++) keys[v] = x[v] == -__builtin_inff() ? REMOVED : key(x[v]);
}

/* Keeps the tokens whose logits are nearest to the mean logit, up to the mass. x is then again below its largest. */
static void keep_typical(int64_t V, float *x, uint32_t *keys, int32_t *weights, double mass, int32_t *room)
{
    int64_t sum = 0;
    for (int64_t v = 0; v < V; v++)
        sum += (int64_t)weights[v] * (int32_t)__builtin_rintf(weights[v] ? x[v] * PARTS : 0.0f);
    float mean = (float)((double)sum / (double)total(V, weights) / PARTS);
    for (int64_t v = 0; v < V; v++)
        keys[v] = keys[v] == REMOVED ? REMOVED : key(-__builtin_fabsf(x[v] - mean));
    keep_mass(V, keys, weights, mass, room);
    for (int64_t v = 0; v < V; v++) x[v] = keys[v] == REMOVED ? -__builtin_inff() : x[v];
    float top = largest(V, x);
    for (int64_t v = 0; v < V; v++) x[v] -= top;
    weigh(V, x, weights);
    make_keys(V, x, keys);
}

static int64_t pick(int64_t V, const int32_t *weights, double mark)
{
    int64_t sum = total(V, weights), place = (int64_t)(mark * (double)sum), v = 0;
    place = place < sum ? place : sum - 1;
    for (int64_t reached = weights[0]; reached <= place; reached += weights[++v])
        ;
    return v;
}

/* ids (B) of logits (B, V), followed by room for 4 V numbers of 32 bits. How many rows have no likeliest token. */
int64_t NAME(draw)(int64_t B, int64_t V, const float *logits, const struct row *rows, int64_t *ids)
{
    float *x = (float *)(ids + B);
    uint32_t *keys = (uint32_t *)x + V;
    int32_t *weights = (int32_t *)keys + V, *room = weights + V;
    int64_t failed = 0;
    for (int64_t b = 0; b < B; b++, rows++) {
        float top = begin(V, logits + b * V, rows, x);
        if (!(top > -__builtin_inff())) {
            failed++;
            continue;
        }
        if (rows->temperature == 0) {
            for (ids[b] = 0; x[ids[b]] != top; ids[b]++)
                ;
            continue;
        }
        double clipped = rows->temperature > 1e-30 ? rows->temperature : 1e-30;
        float temperature = (float)(clipped < 1e30 ? clipped : 1e30);
        for (int64_t v = 0; v < V; v++) x[v] = (x[v] - top) / temperature;
        weigh(V, x, weights);
        int few = rows->top_k > 0 && rows->top_k < V, typical = rows->typical_p < 1, nucleus = rows->top_p < 1;
        if (few || typical || nucleus) make_keys(V, x, keys);
        if (few) keep_likeliest(V, keys, rows->top_k, room);
        if (few) drop_removed(V, keys, weights);
        if (typical) keep_typical(V, x, keys, weights, rows->typical_p, room);
        if (nucleus) keep_mass(V, keys, weights, rows->top_p, room);
        if (rows->least > -__builtin_inf())
            for (int64_t v = 0; v < V; v++)
                if (!((double)x[v] >= rows->least)) weights[v] = 0;
        ids[b] = pick(V, weights, rows->mark);
    }
    return failed;
}
