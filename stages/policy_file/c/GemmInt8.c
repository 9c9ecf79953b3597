/* outputs = bias + scale * (inputs * kernel), a kernel of whole numbers; otherwise as dense. */
static void dense_int8(size_t num_inputs, const float *restrict inputs, size_t num_outputs,
                       const int8_t *restrict kernel, const float *restrict scale,
                       const float *restrict bias, float *restrict outputs)
{
    const size_t whole = num_inputs - num_inputs % 4;
    size_t i, j;
    for (j = 0; j < num_outputs; ++j) outputs[j] = 0.0f;
    for (i = 0; i < whole; i += 4) {
        const float a = inputs[i], b = inputs[i + 1], c = inputs[i + 2], d = inputs[i + 3];
        const int8_t *row_a = kernel, *row_b = row_a + num_outputs, *row_c = row_b + num_outputs;
        const int8_t *row_d = row_c + num_outputs;
        for (j = 0; j < num_outputs; ++j) {
            outputs[j] = (((outputs[j] + a * (float)row_a[j]) + b * (float)row_b[j]) + c * (float)row_c[j])
                         + d * (float)row_d[j];
        }
        kernel = row_d + num_outputs;
    }
    for (i = whole; i < num_inputs; ++i) {
        const float a = inputs[i];
        for (j = 0; j < num_outputs; ++j) outputs[j] += a * (float)kernel[j];
        kernel += num_outputs;
    }
    for (j = 0; j < num_outputs; ++j) outputs[j] = bias[j] + scale[j] * outputs[j];
}
