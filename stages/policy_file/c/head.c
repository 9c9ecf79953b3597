/* A policy in C99: see policy.h. */
#include "policy.h"

#include <math.h>

#if defined(__FAST_MATH__) || defined(_M_FP_FAST) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "policy.c: without -ffast-math or the like, which takes sums apart that must stay as they are"
#endif

typedef union {
    float number;
    uint32_t bits;
} word;

static int all_finite(size_t count, const float *values)
{
    size_t i;
    for (i = 0; i < count; ++i) {
        word value;
        value.number = values[i];
        if ((value.bits & UINT32_C(0x7f800000)) == UINT32_C(0x7f800000)) return 0;
    }
    return 1;
}

static void copy(size_t count, const float *from, float *to)
{
    size_t i;
    for (i = 0; i < count; ++i) to[i] = from[i];
}
