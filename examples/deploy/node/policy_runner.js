// A policy in its control loop: keeps past readings, time and what was sent, clamps what it sends, or holds.

export class PolicyRunner {
  /**
   * `readings` names what `step` takes, in order; `held` counts the steps in a row that held the last control.
   * Throws where the policy's file lacks what it needs; `start` is that of `reset`.
   */
  constructor(policy, start = {}) {
    this.policy = policy;
    const { inputs, outputs, control_dt_s: dt } = policy.metadata;
    this.controls = outputs.control.map((control) => ({
      ...control,
      low: Math.min(control.low, control.high),
      high: Math.max(control.low, control.high),
      most: control.max_rate == null ? Infinity : control.max_rate * dt,
      input: `ctrl:${control.name}[0]`,
    }));
    const sent = this.controls.map(({ input }) => input);
    const found = inputs.observation.map(({ name }) => {
      const [, newest, age] = /^(.+)@-([1-9]\d*)$/s.exec(name) ?? [null, name, 0];
      return { newest, age: Number(age) };
    });
    this.clocks = [];
    this.readings = [];
    for (const { newest } of found.filter(({ newest, age }) => age === 0 && !sent.includes(newest))) {
      const [, period, number] = /^clock:([0-9.e+-]+)\[([01])\]$/.exec(newest) ?? [];
      if (period === undefined) {
        this.readings.push(newest);
      } else { // sin is cos later
        this.clocks.push({ input: newest, turn: (2 * Math.PI * dt) / period, shift: (number * Math.PI) / 2 });
      }
    }
    // A step is a row: its readings, what was sent before it, its time. Each input is a number of a row.
    const columns = [...this.readings, ...sent, ...this.clocks.map(({ input }) => input)];
    this.places = found.map(({ newest, age }) => ({ age, column: columns.lastIndexOf(newest) }));
    const lacking = found.find(({ newest }) => !columns.includes(newest));
    if (lacking) throw new Error(`the policy takes earlier readings of ${lacking.newest}, but not the newest`);
    const rows = 1 + Math.max(...found.map(({ age }) => age));
    this.past = Array.from({ length: rows }, () => new Float32Array(columns.length)); // from the newest row on
    this.observation = new Float32Array(found.length);
    for (const control of this.controls) {
      control.remembered = control.most < Infinity || found.some(({ newest }) => newest === control.input);
    }
    this.reset(start);
  }

  /**
   * Begin anew; `start` says by actuator what counts as sent before the first step.
   *
   * For a position servo that is where it stands, which the first readings tell where they have its joint.
   * Throws where one that the policy builds on is neither given nor known.
   */
  reset(start = {}) {
    const unknown = Object.keys(start).find((name) => !this.controls.some((control) => control.name === name));
    if (unknown !== undefined) throw new Error(`there is no actuator ${unknown}`);
    for (const control of this.controls) {
      const { name, joint, kp } = control;
      control.begin = 0;
      control.reading = -1;
      if (Object.hasOwn(start, name)) {
        control.begin = start[name];
      } else if (this.readings.includes(`qpos:${joint}[0]`)) {
        control.reading = this.readings.lastIndexOf(`qpos:${joint}[0]`);
      } else if (kp == null && control.start != null) {
        control.begin = control.start; // no servo, which would jump
      } else if (control.remembered) {
        throw new Error(`give the start of actuator ${name}: where it stands`);
      }
      if (!Number.isFinite(control.begin)) throw new Error("a start is NaN or infinite");
    }
    this.sent = null;
    this.held = 0;
    this.steps = 0;
  }

  /**
   * Return {control, status} for the newest readings and a goal; null is one that is late.
   *
   * `status` is "ok", or why the last control is held: "late", "not_finite". `control` is null where nothing
   * was safe to send yet. One call at a time.
   */
  async step(readings, goal) {
    let status = "late";
    let fresh = null;
    if (readings != null && goal != null) {
      if (readings.length !== this.readings.length) {
        throw new Error(`readings have ${readings.length} numbers, not ${this.readings.length}`);
      }
      fresh = toFloat32(readings);
      goal = toFloat32(goal);
      status = fresh.every(Number.isFinite) && goal.every(Number.isFinite) ? "ok" : "not_finite";
    }
    let sent = this.sent;
    if (sent === null && status === "ok") { // as if it had stood there for ever
      sent = Float32Array.from(this.controls, ({ begin, reading, gear, low, high }) =>
        clamp(reading < 0 ? begin : gear * fresh[reading], low, high));
      this.steps = 0;
      for (const row of this.past) {
        row.set(fresh);
        this.setKept(row, sent);
      }
    } else if (sent !== null) {
      const [newest, oldest] = [this.past[0], this.past.pop()];
      oldest.set(newest);
      this.steps += 1;
      this.setKept(oldest, sent);
      if (status === "ok") oldest.set(fresh);
      this.past.unshift(oldest);
    }
    if (status === "ok") {
      this.places.forEach(({ age, column }, place) => (this.observation[place] = this.past[age][column]));
      const { control } = await this.policy.act(this.observation, goal);
      if (control.every(Number.isFinite)) {
        this.sent = Float32Array.from(this.controls, ({ low, high, most }, place) =>
          clamp(clamp(control[place], sent[place] - most, sent[place] + most), low, high));
        this.held = 0;
        return { control: this.sent.slice(), status };
      }
      status = "not_finite";
    }
    this.held += 1;
    return { control: this.sent && this.sent.slice(), status };
  }

  /** Put what was sent and the time into a row, after its readings. */
  setKept(row, sent) {
    row.set(sent, this.readings.length);
    this.clocks.forEach(({ turn, shift }, place) => {
      row[this.readings.length + sent.length + place] = Math.cos(this.steps * turn - shift);
    });
  }
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** Return numbers as float32; what is none, such as null, is NaN. */
function toFloat32(values) {
  return Float32Array.from(values, (value) => (typeof value === "number" ? value : NaN));
}
