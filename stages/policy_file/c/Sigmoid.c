/* 1 / (1 + exp(-x)). exp(y) = 2^k exp(r) with the whole number k nearest to y / ln 2, and a polynomial for
 * exp(r) that is off by a unit in the last place (Cephes, expf); unlike expf it becomes vector code. */
static void sigmoid(size_t count, const float *restrict inputs, float *restrict outputs)
{
    size_t i;
    for (i = 0; i < count; ++i) {
        const float middle = 12582912.0f; /* 1.5 * 2^23: what is added to it is rounded to a whole number */
        float y = -inputs[i], k, r, p;
        word whole, power;
        y = y > 88.0f ? 88.0f : y;
        y = y < -87.0f ? -87.0f : y;
        whole.number = y * 1.44269504f + middle;
        power.bits = (whole.bits << 23) + UINT32_C(0x3f800000);
        k = whole.number - middle;
        r = y - k * 0.693359375f + k * 2.12194440e-4f;
        p = 1.9875691500e-4f;
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * r * r + r + 1.0f;
        outputs[i] = 1.0f / (1.0f + p * power.number);
    }
}
