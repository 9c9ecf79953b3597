// A policy file, opened to act: clipping, normalisation, network and actuator units are inside the file.

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";
import { readMetadata } from "./policy_metadata.js";
import { requireSignature } from "./signature.js";

const FORMAT_VERSIONS = [3, 4]; // 4 has earlier readings or a clock, which PolicyRunner fills in

export class Policy {
  /**
   * Open a file; rejects where it is truncated or no policy file of this format.
   *
   * With `trusted`, the file of a public key, it also rejects what is not signed with that key.
   */
  static async open(path, trusted = null) {
    const bytes = await readFile(path);
    if (trusted !== null) requireSignature(bytes, await readFile(trusted, "utf8"));
    const texts = readMetadata(bytes);
    const metadata = JSON.parse(texts.thousandfold ?? "{}");
    if (!FORMAT_VERSIONS.includes(metadata.format_version) || texts.thousandfold_golden === undefined) {
      throw new Error("it is no policy file of format 3 or 4: export it again");
    }
    if (!Number.isFinite(metadata.control_dt_s) || metadata.control_dt_s <= 0) {
      throw new Error("it has a control_dt_s that is no time above 0: export it again");
    }
    const session = await ort.InferenceSession.create(bytes, {
      executionProviders: ["cpu"],
      intraOpNumThreads: 1,
      interOpNumThreads: 1,
      executionMode: "sequential",
      graphOptimizationLevel: "all",
    });
    return new Policy(session, metadata, JSON.parse(texts.thousandfold_golden));
  }

  constructor(session, metadata, golden) {
    this.session = session;
    this.metadata = metadata;
    this.golden = golden;
    this.inputs = {};
    for (const name of ["observation", "goal"]) {
      const size = metadata.inputs[name].length;
      this.inputs[name] = new ort.Tensor("float32", new Float32Array(size), [1, size]);
    }
  }

  /**
   * Return {action, control} for one state: action in [-1, 1], control in actuator units.
   * Rejects NaN and infinity, which the clip inside the graph may hide. One call at a time.
   */
  async act(observation, goal) {
    for (const [name, values] of Object.entries({ observation, goal })) {
      const row = this.inputs[name].data;
      if (values.length !== row.length) {
        throw new Error(`${name} has ${values.length} numbers, not ${row.length}`);
      }
      row.set(values);
      if (!row.every(Number.isFinite)) {
        throw new Error(`${name} holds NaN or infinity: stop, or repeat the last control`);
      }
    }
    const { action, control } = await this.session.run(this.inputs);
    return { action: action.data, control: control.data };
  }
}
