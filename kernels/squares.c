/* Squared lengths of x = s E[t] + P[p], without its mean where one is given, for tokens in windows.
 *
 * Squares are added in the order of squares.py, of which this is the compiled body: same bits. */

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

enum {
    AHEAD = 4,  /* tokens: how long before it is read a row of E is fetched */
    LANES = 32, /* sums that are kept side by side, and added one after the other in the end */
    LINE = 64,  /* bytes that memory gives at once */
};

/* As squares.py declares it. */
struct job {
    const float *token_features;    /* [U, d] */
    const float *position_features; /* [length or more, d] */
    const float *means;             /* [count], or NULL */
    const int32_t *rows;            /* [count]: windows of `length` tokens, one after the other */
    double *out;                    /* [count] */
    int64_t count, length, d;
    int64_t part;         /* tokens that a thread takes at once */
    _Atomic int64_t next; /* the first that no thread has taken */
};

static double square_of(const float *restrict e, const float *restrict p, float mean, int64_t d) {
    const int64_t whole = d / LANES * LANES;
    double sums[LANES] = {0};
    for (int64_t first = 0; first < whole; first += LANES)
        for (int i = 0; i < LANES; i++) {
            const double x = e[first + i] + p[first + i] - mean;
            sums[i] += x * x;
        }
    for (int64_t i = 0; i < d - whole; i++) {
        const double x = e[whole + i] + p[whole + i] - mean;
        sums[i] += x * x;
    }
    double sum = 0;
    for (int i = 0; i < LANES; i++) sum += sums[i];
    return sum;
}

/* Do parts of a job until all are taken: what each of its threads runs. */
void run(void *argument) {
    struct job *job = argument;
    const int64_t d = job->d;
    int64_t first;
    while ((first = atomic_fetch_add(&job->next, job->part)) < job->count) {
        const int64_t stop = first + job->part < job->count ? first + job->part : job->count;
        for (int64_t n = first; n < stop; n++) {
            if (n + AHEAD < stop) {
                const float *soon = job->token_features + job->rows[n + AHEAD] * d;
                for (int64_t i = 0; i < d; i += LINE / sizeof(float)) __builtin_prefetch(soon + i);
            }
            const float *e = job->token_features + job->rows[n] * d;
            const float *p = job->position_features + n % job->length * d;
            job->out[n] = square_of(e, p, job->means ? job->means[n] : 0.0f, d);
        }
    }
}
