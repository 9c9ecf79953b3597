// `node run_policy.js policy.onnx` compares the policy with its golden rows, and times it.
// With `--trusted key.pub` it first requires that the file is signed with that key.

import { Policy } from "./policy.js";

const CALLS = 2000;
const WARM_UP = 200;

/** Return the largest error over the golden rows: of an action, or of a control over its bound. */
async function goldenError(policy) {
  const { golden, metadata } = policy;
  const bounds = metadata.outputs.control.map(({ low, high }) => Math.max(Math.abs(low), Math.abs(high)) || 1);
  let largest = 0;
  for (let row = 0; row < golden.action.length; row++) {
    const { action, control } = await policy.act(golden.observation[row], golden.goal[row]);
    const errors = golden.action[row].map((expected, i) => Math.abs(action[i] - expected));
    errors.push(...golden.control[row].map((expected, i) => Math.abs(control[i] - expected) / bounds[i]));
    largest = errors.reduce((most, error) => (error <= most ? most : error), largest); // keeps NaN
  }
  return largest;
}

/** Return p50 and p99 of a call in microseconds. */
async function latency(policy) {
  const [observation, goal] = [policy.golden.observation[0], policy.golden.goal[0]];
  const spent = new Float64Array(CALLS);
  for (let call = -WARM_UP; call < CALLS; call++) {
    const began = process.hrtime.bigint();
    await policy.act(observation, goal);
    if (call >= 0) spent[call] = Number(process.hrtime.bigint() - began) / 1e3;
  }
  spent.sort();
  return [spent[Math.ceil(0.5 * CALLS) - 1], spent[Math.ceil(0.99 * CALLS) - 1]];
}

const [path, option, trusted = null] = process.argv.slice(2);
if (path === undefined || (option !== undefined && (option !== "--trusted" || trusted === null))) {
  console.error("usage: node run_policy.js policy.onnx [--trusted key.pub]");
  process.exit(2);
}
try {
  const policy = await Policy.open(path, trusted);
  const [error, tolerance] = [await goldenError(policy), policy.golden.tolerance];
  const rows = policy.golden.action.length;
  console.log(`golden rows: ${rows}, max error ${error.toExponential(2)}, tolerance ${tolerance}`);
  const [p50, p99] = await latency(policy);
  console.log(`latency: p50 ${p50.toFixed(1)} us, p99 ${p99.toFixed(1)} us, one thread, back to back`);
  process.exitCode = error <= tolerance ? 0 : 1;
} catch (error) {
  console.error(`Error: ${path} cannot be run: ${error.message}`);
  process.exitCode = 2;
}
