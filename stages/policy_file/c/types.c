typedef struct {
    float low, high, most; /* most it changes in a step */
    float gear, start, bound;
    int reading; /* that tells where it stands before the first step; -1: none does */
    int ask;     /* whether its start must be given */
} policy_actuator;

typedef struct {
    size_t age, number; /* of the step that a number of the observation lies in */
} policy_source;

typedef struct {
    uint64_t turn, shift; /* of a step, and backwards at the start, in units of 2^-64 of a turn */
} policy_clock;

typedef struct {
    float observation[POLICY_OBSERVATION], goal[POLICY_GOAL], action[POLICY_ACTION], control[POLICY_CONTROL];
} golden_row;
