/* A policy in C99, made of a policy file by `pipeline policy to-c`: make it anew rather than change it.
 * docs/c_file.md of Thousandfold says how it is called. */
#ifndef POLICY_H
#define POLICY_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The seal of the policy file, as `pipeline policy inspect` shows it. */
#define POLICY_SHA256 "$sha256"

/* How the weights between the first layer and the last are stored: float32, or int8 with a scale a unit. */
#define POLICY_WEIGHTS "$weights"

/* Seconds between two steps. */
#define POLICY_CONTROL_DT_S $control_dt_s

/* How many numbers policy_run takes and gives, and of how many readings policy_step makes an observation. */
#define POLICY_OBSERVATION $observation
#define POLICY_GOAL $goal
#define POLICY_ACTION $action
#define POLICY_CONTROL $control
#define POLICY_READINGS $readings

/* What a state keeps: steps, the newest first; of each its readings, what was sent before it, and clocks. */
#define POLICY_STEPS $steps
#define POLICY_CLOCKS $clocks
#define POLICY_STEP_NUMBERS (POLICY_READINGS + POLICY_CONTROL + POLICY_CLOCKS)

enum {
    POLICY_OK = 0,
    POLICY_LATE = 1,       /* the last control is held: readings or goal are late */
    POLICY_NOT_FINITE = 2, /* the last control is held: a number is NaN or infinite */
    POLICY_NOT_RESET = 3   /* there is no control: policy_reset was not called, or it returned another than 0 */
};

/* A number of an input or output: of an input the range that the policy was checked on, of a control its ends. */
typedef struct {
    const char *name, *unit;
    float low, high;
} policy_number;

/* In order; the last of each has NULL for a name. */
extern const policy_number policy_observation[POLICY_OBSERVATION + 1];
extern const policy_number policy_goal[POLICY_GOAL + 1];
extern const policy_number policy_control[POLICY_CONTROL + 1];
extern const policy_number policy_readings[POLICY_READINGS + 1];

/* What the policy file says of itself, JSON in UTF-8: texts that follow one another, the last of them NULL. */
extern const char *const policy_description[];

/* One robot, or one world, in its control loop. To be read: held, sending, sent and action. */
typedef struct {
    float past[POLICY_STEPS][POLICY_STEP_NUMBERS];
    float start[POLICY_CONTROL];
    float sent[POLICY_CONTROL];  /* last, where it is sending */
    float action[POLICY_ACTION]; /* that sent was made of */
    uint64_t steps;              /* since the first good one */
    uint32_t held;               /* steps in a row that held the last control */
    unsigned char measured[POLICY_CONTROL];
    unsigned char sending;       /* whether anything was safe to send since the reset */
    unsigned char ready;
} policy_state;

/* Compute what the graph of the policy file does: of an observation and a goal an action and a control.
 * Returns POLICY_OK, or POLICY_NOT_FINITE where an input is NaN or infinite; outputs are untouched then.
 * Keeps nothing, and may be called from several threads at once. */
int policy_run(const float *observation, const float *goal, float *action, float *control);

/* Begin anew. start: for every control what counts as sent before the first step, NaN where that is not
 * given; NULL gives none. Of a position servo it is where it stands, which the first readings tell where they
 * have its joint. Returns 0, or the number, from 1, of a control whose start is not known or infinite. */
int policy_reset(policy_state *state, const float *start);

/* Make a step of the newest readings and a goal; NULL is one that is late. Gives in control what to send,
 * which counts as sent; touches it not where state->sending is 0: then there is nothing safe to send yet.
 * Returns POLICY_OK, or why the last control is held, or POLICY_NOT_RESET. */
int policy_step(policy_state *state, const float *readings, const float *goal, float *control);

/* Returns 0 where policy_run gives the golden outputs of the policy file (with int8 weights: those that it gave
 * where this file was written), or the number of the first row, from 1, that it does not give. */
int policy_self_test(void);

#ifdef __cplusplus
}
#endif

#endif
