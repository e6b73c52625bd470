/* Method `tables` on the CPU: the rows of A and B that q, k or v are the sum of.
 *
 * combine_c.py compiles it for one dtype of the output (-DFLOAT32, -DBFLOAT16 or -DFLOAT16) and one
 * width of a head (-DWIDTH=64; 0 leaves it open). Every product and sum is rounded by itself, as in
 * combine_torch.py, so that both give the same bits: the compiler may not contract them. */

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

enum {
    AHEAD = 8,         /* tokens: how long before it is read a row of A is fetched; 0.7 without */
    LINE = 64,         /* bytes that memory takes at once */
    MOST_BYTES = 8192, /* of a row that is streamed */
};

/* As combine_c.py declares it. Strides are in values; those of a head lie side by side. */
struct job {
    const float *token_table;    /* [heads, U, width] */
    const float *position_table; /* [heads, length or more, width], or NULL */
    const float *scale;          /* [windows, length], or NULL */
    const float *constant;       /* [heads, width], beside scale */
    const float *cosine, *sine;  /* [length or more, half] */
    const int32_t *rows;         /* [windows, length] */
    void *out;                   /* [windows, heads, length, width] */
    int64_t windows, heads, length, width;
    int64_t half; /* of the values of a head that turn; 0 where none does */
    int64_t token_stride, position_stride; /* from head to head */
    int64_t window_stride, head_stride, length_stride;
    int32_t interleaved, stream;
    int64_t part;         /* tokens of a head that a thread takes at once */
    _Atomic int64_t next; /* the first that no thread has taken */
};

#if defined(FLOAT32)
typedef float item;
static inline item rounded(float value) { return value; }
#else
typedef uint16_t item;

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

#if defined(BFLOAT16)
static inline item rounded(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t nearest = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7FFFFFFF) > 0x7F800000 ? bits >> 16 | 0x40 : nearest;
}
#elif defined(FLOAT16)
static inline item rounded(float value) {
    const uint32_t sign = bits_of(value) >> 16 & 0x8000, size = bits_of(value) & 0x7FFFFFFF;
    /* The last place of a number from 0.5 on is the smallest half: the addition rounds. */
    const uint32_t small = bits_of(__builtin_fabsf(value) + 0.5f) - bits_of(0.5f);
    const uint32_t normal = (size - (112u << 23) + 0xFFF + (size >> 13 & 1)) >> 13;
    const uint32_t finite = size < 113u << 23 ? small : normal;
    const uint32_t large = size > 0x7F800000 ? 0x7E00 | (size >> 13 & 0x3FF) : 0x7C00;
    return sign | (size < 143u << 23 ? finite : large);
}
#endif
#endif

/* Write the row of token t of a window, whose head has the tables a, b and c. */
static inline void finish(item *restrict to, const float *restrict a, const float *restrict b,
                          const float *restrict c, const float *scale, const struct job *job,
                          int64_t t, int64_t width) {
    if (b && scale) {
        const float r = scale[t];
        for (int64_t i = 0; i < width; i++) to[i] = rounded((a[i] + b[i]) * r + c[i]);
        return;
    }
    if (b) {
        for (int64_t i = 0; i < width; i++) to[i] = rounded(a[i] + b[i]);
        return;
    }
    const int64_t half = job->half;
    const float *restrict cosine = half ? job->cosine + t * half : NULL;
    const float *restrict sine = half ? job->sine + t * half : NULL;
    if (job->interleaved) {
        for (int64_t i = 0; i < half; i++) {
            to[2 * i] = rounded(a[2 * i] * cosine[i] - a[2 * i + 1] * sine[i]);
            to[2 * i + 1] = rounded(a[2 * i + 1] * cosine[i] + a[2 * i] * sine[i]);
        }
    } else {
        for (int64_t i = 0; i < half; i++) {
            to[i] = rounded(a[i] * cosine[i] - a[half + i] * sine[i]);
            to[half + i] = rounded(a[half + i] * cosine[i] + a[i] * sine[i]);
        }
    }
    for (int64_t i = 2 * half; i < width; i++) to[i] = rounded(a[i]);
}

/* Tokens first to stop - 1 of one window and head. */
static void combine(const struct job *job, int64_t h, int64_t w, int64_t first, int64_t stop) {
    const int64_t width = WIDTH ? WIDTH : job->width;
    const float *table = job->token_table + h * job->token_stride;
    const float *addends = job->position_table;
    const float *constant = job->scale ? job->constant + h * width : NULL;
    const float *scale = job->scale ? job->scale + w * job->length : NULL;
    const int32_t *rows = job->rows + w * job->length;
    item *out = (item *)job->out + w * job->window_stride + h * job->head_stride;
    if (addends) addends += h * job->position_stride;
#if defined(__SSE2__)
    const int64_t bytes = width * (int64_t)sizeof(item);
    _Alignas(LINE) item buffer[MOST_BYTES / sizeof(item)];
    const int stream = job->stream && bytes <= MOST_BYTES && bytes % LINE == 0 &&
                       (uintptr_t)out % LINE == 0 &&
                       job->length_stride * sizeof(item) % LINE == 0;
#endif
    for (int64_t t = first; t < stop; t++) {
        if (t + AHEAD < stop) {
            const float *soon = table + rows[t + AHEAD] * width;
            for (int64_t i = 0; i < width; i += LINE / sizeof(float)) __builtin_prefetch(soon + i);
        }
        const float *a = table + rows[t] * width, *b = addends ? addends + t * width : NULL;
        item *to = out + t * job->length_stride;
#if defined(__SSE2__)
        if (stream) {
            finish(buffer, a, b, constant, scale, job, t, width);
            for (int64_t i = 0; i < bytes; i += 16)
                _mm_stream_si128((__m128i *)((char *)to + i),
                                 _mm_load_si128((__m128i *)((char *)buffer + i)));
            continue;
        }
#endif
        finish(to, a, b, constant, scale, job, t, width);
    }
#if defined(__SSE2__)
    if (stream) _mm_sfence();
#endif
}

/* Do parts of a job until all are taken: what each of its threads runs. All tokens of one head come
 * before the next head's, so that its rows of A and B stay in the caches. */
void run(void *argument) {
    struct job *job = argument;
    const int64_t count = job->heads * job->windows * job->length;
    int64_t first;
    while ((first = atomic_fetch_add(&job->next, job->part)) < count) {
        const int64_t end = first + job->part < count ? first + job->part : count;
        while (first < end) {
            const int64_t window = first / job->length, t = first % job->length;
            const int64_t rest = end - first, left = job->length - t;
            const int64_t stop = t + (rest < left ? rest : left);
            combine(job, window / job->windows, window % job->windows, t, stop);
            first += stop - t;
        }
    }
}
