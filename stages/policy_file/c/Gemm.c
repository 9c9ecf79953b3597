/* outputs = bias + inputs * kernel; a row of the kernel belongs to an input. Four rows at a time save loads
 * and stores; the sums are those of one row after the other. */
static void dense(size_t num_inputs, const float *restrict inputs, size_t num_outputs,
                  const float *restrict kernel, const float *restrict bias, float *restrict outputs)
{
    const size_t whole = num_inputs - num_inputs % 4;
    size_t i, j;
    for (j = 0; j < num_outputs; ++j) outputs[j] = bias[j];
    for (i = 0; i < whole; i += 4) {
        const float a = inputs[i], b = inputs[i + 1], c = inputs[i + 2], d = inputs[i + 3];
        const float *row_a = kernel, *row_b = row_a + num_outputs, *row_c = row_b + num_outputs;
        const float *row_d = row_c + num_outputs;
        for (j = 0; j < num_outputs; ++j) {
            outputs[j] = (((outputs[j] + a * row_a[j]) + b * row_b[j]) + c * row_c[j]) + d * row_d[j];
        }
        kernel = row_d + num_outputs;
    }
    for (i = whole; i < num_inputs; ++i) {
        const float a = inputs[i];
        for (j = 0; j < num_outputs; ++j) outputs[j] += a * kernel[j];
        kernel += num_outputs;
    }
}
