#if POLICY_CLOCKS > 0
/* A clock's number: the cosine of its turns so far. They are counted in units of 2^-64, so that whole turns
 * fall away exactly. */
static float told(const policy_clock *clock, uint64_t steps)
{
    const uint64_t phase = steps * clock->turn - clock->shift;
    return cosf((float)(phase >> 40) * (6.28318531f / 16777216.0f));
}
#endif

static float between(float value, float low, float high)
{
    return value < low ? low : value > high ? high : value;
}

int policy_reset(policy_state *state, const float *start)
{
    size_t k;
    state->sending = state->ready = 0;
    state->held = 0;
    state->steps = 0;
    for (k = 0; k < POLICY_CONTROL; ++k) {
        const policy_actuator *each = &actuators[k];
        const int given = start != NULL && start[k] == start[k];
        state->measured[k] = !given && each->reading >= 0;
        state->start[k] = given ? start[k] : each->start;
        if (!all_finite(1, &state->start[k]) || (!given && each->ask)) return (int)k + 1;
    }
    state->ready = 1;
    return 0;
}

int policy_step(policy_state *state, const float *readings, const float *goal, float *control)
{
    float observation[POLICY_OBSERVATION], sent[POLICY_CONTROL], next[POLICY_CONTROL];
    float *newest = state->past[0];
    size_t k;
    int status = POLICY_OK;
    if (!state->ready) return POLICY_NOT_RESET;
    if (readings == NULL || goal == NULL) {
        status = POLICY_LATE;
    } else if (!all_finite(POLICY_READINGS, readings) || !all_finite(POLICY_GOAL, goal)) {
        status = POLICY_NOT_FINITE;
    }
    if (state->sending) {
        copy(POLICY_CONTROL, state->sent, sent);
        state->steps += 1;
        for (k = POLICY_STEPS - 1; k > 0; --k) copy(POLICY_STEP_NUMBERS, state->past[k - 1], state->past[k]);
    } else if (status == POLICY_OK) { /* as if it had stood there for ever */
        state->steps = 0;
        for (k = 0; k < POLICY_CONTROL; ++k) {
            const policy_actuator *each = &actuators[k];
            const float stands = state->measured[k] ? each->gear * readings[each->reading] : state->start[k];
            sent[k] = between(stands, each->low, each->high);
        }
    }
    if (state->sending || status == POLICY_OK) {
        if (status == POLICY_OK) copy(POLICY_READINGS, readings, newest); /* else the last good ones, once more */
        copy(POLICY_CONTROL, sent, newest + POLICY_READINGS);
#if POLICY_CLOCKS > 0
        for (k = 0; k < POLICY_CLOCKS; ++k) {
            newest[POLICY_READINGS + POLICY_CONTROL + k] = told(&clocks[k], state->steps);
        }
#endif
    }
    if (status == POLICY_OK) {
        if (!state->sending) {
            for (k = 1; k < POLICY_STEPS; ++k) copy(POLICY_STEP_NUMBERS, newest, state->past[k]);
        }
        for (k = 0; k < POLICY_OBSERVATION; ++k) observation[k] = state->past[sources[k].age][sources[k].number];
        if (policy_run(observation, goal, state->action, next) != POLICY_OK
            || !all_finite(POLICY_CONTROL, next)) {
            status = POLICY_NOT_FINITE;
        }
    }
    if (status == POLICY_OK) {
        for (k = 0; k < POLICY_CONTROL; ++k) {
            const policy_actuator *each = &actuators[k];
            next[k] = between(next[k], sent[k] - each->most, sent[k] + each->most);
            state->sent[k] = between(next[k], each->low, each->high);
        }
        state->sending = 1;
        state->held = 0;
    } else {
        state->held += 1;
    }
    if (state->sending) copy(POLICY_CONTROL, state->sent, control);
    return status;
}

int policy_self_test(void)
{
    float action[POLICY_ACTION], control[POLICY_CONTROL];
    size_t row, k;
    for (row = 0; row < GOLDEN_ROWS; ++row) {
        const golden_row *golden = &golden_rows[row];
        if (policy_run(golden->observation, golden->goal, action, control) != POLICY_OK) return (int)row + 1;
        for (k = 0; k < POLICY_ACTION; ++k) {
            if (!(fabsf(action[k] - golden->action[k]) <= GOLDEN_TOLERANCE)) return (int)row + 1;
        }
        for (k = 0; k < POLICY_CONTROL; ++k) {
            const float most = GOLDEN_TOLERANCE * actuators[k].bound;
            if (!(fabsf(control[k] - golden->control[k]) <= most)) return (int)row + 1;
        }
    }
    return 0;
}
