#define LANES 8

static float sum_of(const float *lanes)
{
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

/* Sums go by lanes, so that a compiler makes vectors of them without changing their order. */
static void layer_norm(size_t count, const float *restrict inputs, const float *restrict scale,
                       const float *restrict shift, float epsilon, float *restrict outputs)
{
    const size_t whole = count - count % LANES;
    float sums[LANES] = {0}, squares[LANES] = {0}, mean, factor;
    size_t i, lane;
    for (i = 0; i < whole; i += LANES) {
        for (lane = 0; lane < LANES; ++lane) sums[lane] += inputs[i + lane];
    }
    for (i = whole; i < count; ++i) sums[i - whole] += inputs[i];
    mean = sum_of(sums) / (float)count;
    for (i = 0; i < count; ++i) outputs[i] = inputs[i] - mean;
    for (i = 0; i < whole; i += LANES) {
        for (lane = 0; lane < LANES; ++lane) squares[lane] += outputs[i + lane] * outputs[i + lane];
    }
    for (i = whole; i < count; ++i) squares[i - whole] += outputs[i] * outputs[i];
    factor = 1.0f / sqrtf(sum_of(squares) / (float)count + epsilon);
    for (i = 0; i < count; ++i) outputs[i] = outputs[i] * factor * scale[i] + shift[i];
}
