/* What a softmax over many ids needs, in one visit of each row, of which `network.losses` has the reference. Each
 * thread owns some rows, so the result does not depend on their number.
 */
#include "vector.h"

struct rows {
    int (*number)(void), (*count)(void); /* omp_get_thread_num and omp_get_num_threads; null outside of OpenMP */
    int64_t rows, ids; /* R, V */
    const float *bias; /* (V) */
    float *logits; /* (R, V): z without its bias; afterwards exp(z + bias - peak) */
    float *peak, *sum; /* (R): the largest of z + bias, and the sum of what `logits` becomes */
};

#define MANY 4 /* registers side by side: each adds up its own share */

static inline float largest(vec v)
{
    float best = v[0];
    for (int i = 1; i < LANES; i++) best = v[i] > best ? v[i] : best;
    return best;
}

void NAME(exponentials)(struct rows *job)
{
    long thread = job->number ? job->number() : 0, threads = job->count ? job->count() : 1, V = job->ids;
    const float *bias = job->bias;
    for (long r = thread * job->rows / threads; r < (thread + 1) * job->rows / threads; r++) {
        float *z = job->logits + r * V, peak = -3.4e38f, sum = 0;
        vec best[MANY], sums[MANY];
        for (int i = 0; i < MANY; i++) best[i] = all(peak), sums[i] = all(0);
        long v = 0;
        for (; v + MANY * LANES <= V; v += MANY * LANES)
            for (int i = 0; i < MANY; i++)
                best[i] = larger(load(z + v + i * LANES) + load(bias + v + i * LANES), best[i]);
        for (int i = 0; i < MANY; i++) peak = largest(best[i]) > peak ? largest(best[i]) : peak;
        for (; v < V; v++) peak = z[v] + bias[v] > peak ? z[v] + bias[v] : peak;
        for (v = 0; v + MANY * LANES <= V; v += MANY * LANES)
            for (int i = 0; i < MANY; i++) {
                float *place = z + v + i * LANES;
                vec e = exponential(load(place) + load(bias + v + i * LANES) - peak);
                store(place, e);
                sums[i] += e;
            }
        for (; v < V; v++) sum += z[v] = exponential(all(z[v] + bias[v] - peak))[0];
        for (int i = 0; i < MANY; i++)
            for (int u = 0; u < LANES; u++) sum += sums[i][u];
        job->peak[r] = peak, job->sum[r] = sum;
    }
}
