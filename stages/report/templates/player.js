// Plays recorded episodes: a click on a goal shows the way there, drawn from where every body was.
"use strict";
(() => {
  const told = JSON.parse(document.getElementById("recording").textContent);
  const player = document.querySelector(".player");
  const [field, canvas, scene, play, slider, clock, outcome] =
    [".field", "canvas", ".scene", ".play", ".slider", ".clock", ".outcome"].map(name => player.querySelector(name));
  const bodies = Math.max(0, ...told.parts.map(part => part.body + 1), told.camera.follow + 1), after = 7 * bodies;
  const width = told.low.length, axes = told.axes;
  const calm = matchMedia("(prefers-reduced-motion: reduce)"), dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = 0, time = 0, playing = false, last = 0, frame = 0;

  // -- What was recorded ---------------------------------------------------------------------------

  async function unpack() {
    const bytes = Uint8Array.from(atob(told.numbers), letter => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const raw = new Uint8Array(await new Response(stream).arrayBuffer());
    let at = 0;
    for (const episode of told.episodes) {
      const count = episode.frames * width, values = episode.values = new Float32Array(count);
      for (let column = 0, next = 0; column < width; column++) {
        const low = told.low[column], step = (told.high[column] - low) / 65535;
        for (let frame = 0, level = 0; frame < episode.frames; frame++, next++) {
          level = (level + raw[at + next] + 256 * raw[at + count + next]) & 65535;
          values[frame * width + column] = low + step * level;
        }
      }
      at += 2 * count;
    }
  }

  const end = episode => (episode.frames - 1) * told.frame_s;

  // The columns of an episode at a time, between two frames.
  function sample(episode, seconds) {
    const place = Math.min(seconds / told.frame_s, episode.frames - 1), frame = Math.floor(place), share = place - frame;
    const one = episode.values.subarray(frame * width, (frame + 1) * width);
    if (!share) return one;
    const other = episode.values.subarray((frame + 1) * width, (frame + 2) * width);
    const found = one.map((value, column) => value + share * (other[column] - value));
    for (let at = 3; at < after; at += 7) {
      const length = Math.hypot(...found.subarray(at, at + 4));
      for (let number = at; number < at + 4; number++) found[number] /= length;
    }
    found[after + 1] = one[after + 1];
    return found;
  }

  // -- Solids in WebGL -----------------------------------------------------------------------------

  const VERTEX = `attribute vec3 point, normal; uniform mat4 view; uniform vec3 place, size, sun; uniform vec4 turn;
    uniform float ground, shadow; varying vec3 world, up; varying vec2 tile;
    vec3 turned(vec3 v) { return v + 2.0 * cross(turn.yzw, cross(turn.yzw, v) + turn.x * v); }
    void main() {
      world = place + turned(point * size); up = turned(normal / size); tile = point.xy * size.xy;
      if (shadow > 0.0) world += sun * (max(world.z - ground, 0.0) / -sun.z) + vec3(0.0, 0.0, shadow);
      gl_Position = view * vec4(world, 1.0);
    }`;
  const FRAGMENT = `precision highp float; uniform vec4 colour; uniform vec3 eye, sun, look, sky, square;
    uniform float checker, far, shadow; varying vec3 world, up; varying vec2 tile;
    void main() {
      vec3 n = normalize(up), lit = colour.rgb;
      if (shadow > 0.0) { gl_FragColor = colour; return; }
      if (checker > 0.0) {
        vec2 cell = floor(tile / checker);
        lit = mix(lit, square, mod(cell.x + cell.y, 2.0));
        lit = mix(lit, sky, smoothstep(1.6, 4.5, distance(world, look) / far));
      } else {
        lit *= 0.56 + 0.42 * max(dot(n, -normalize(sun)), 0.0) + 0.14 * abs(dot(n, normalize(eye - world)));
      }
      gl_FragColor = vec4(lit, colour.a);
    }`;
  const SUN = [-0.45, 0.2, -1];

  function unitSolids() {
    const ring = 28, rows = 14, solids = {box: [], ellipsoid: [], cylinder: [], plane: []};
    const quad = (solid, corners, normals) => {
      for (const corner of [0, 1, 2, 0, 2, 3]) solid.push(...corners[corner], ...normals[corner]);
    };
    for (let axis = 0; axis < 3; axis++) for (const side of [-1, 1]) {
      const normal = [0, 0, 0], corner = (a, b) => {
        const point = [0, 0, 0];
        point[axis] = side; point[(axis + 1) % 3] = a; point[(axis + 2) % 3] = b;
        return point;
      };
      normal[axis] = side;
      quad(solids.box, [corner(-1, -1), corner(1, -1), corner(1, 1), corner(-1, 1)], Array(4).fill(normal));
    }
    quad(solids.plane, [[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], Array(4).fill([0, 0, 1]));
    const on = (around, up) => {
      const a = 2 * Math.PI * around / ring, e = Math.PI * (up / rows - 0.5);
      return [Math.cos(e) * Math.cos(a), Math.cos(e) * Math.sin(a), Math.sin(e)];
    };
    for (let around = 0; around < ring; around++) {
      for (let up = 0; up < rows; up++) {
        const corners = [on(around, up), on(around + 1, up), on(around + 1, up + 1), on(around, up + 1)];
        quad(solids.ellipsoid, corners, corners);
      }
      const [a, b] = [on(around, rows / 2), on(around + 1, rows / 2)], at = (point, z) => [point[0], point[1], z];
      quad(solids.cylinder, [at(a, -1), at(b, -1), at(b, 1), at(a, 1)], [a, b, b, a]);
      for (const z of [-1, 1]) quad(solids.cylinder, [[0, 0, z], at(a, z), at(b, z), [0, 0, z]], Array(4).fill([0, 0, z]));
    }
    return solids;
  }

  function faceted(mesh) {
    const solid = [];
    for (const triangle of mesh.triangles) {
      const [a, b, c] = triangle.map(index => mesh.vertices[index]), normal = cross(minus(b, a), minus(c, a));
      for (const point of [a, b, c]) solid.push(...point, ...normal);
    }
    return solid;
  }

  const minus = (a, b) => a.map((value, axis) => value - b[axis]);
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const times = (p, q) => [
    p[0] * q[0] - p[1] * q[1] - p[2] * q[2] - p[3] * q[3], p[0] * q[1] + p[1] * q[0] + p[2] * q[3] - p[3] * q[2],
    p[0] * q[2] - p[1] * q[3] + p[2] * q[0] + p[3] * q[1], p[0] * q[3] + p[1] * q[2] - p[2] * q[1] + p[3] * q[0]];
  const turned = (q, v) => {
    const axis = [q[1], q[2], q[3]], inner = cross(axis, v).map((value, at) => value + q[0] * v[at]);
    return cross(axis, inner).map((value, at) => v[at] + 2 * value);
  };

  function makeRenderer() {
    const gl = canvas.getContext("webgl", {alpha: false, antialias: true, stencil: true});
    if (!gl) return null;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text); gl.compileShader(shader); gl.attachShader(program, shader);
    }
    gl.linkProgram(program); gl.useProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) return null;
    const uniform = new Proxy({}, {get: (known, name) => known[name] ??= gl.getUniformLocation(program, name)});
    const attributes = ["point", "normal"].map(name => gl.getAttribLocation(program, name));
    attributes.forEach(each => gl.enableVertexAttribArray(each));
    const upload = numbers => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer); gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(numbers), gl.STATIC_DRAW);
      return {buffer, count: numbers.length / 6};
    };
    const solids = Object.fromEntries(Object.entries(unitSolids()).map(([kind, numbers]) => [kind, upload(numbers)]));
    const meshes = told.meshes.map(mesh => upload(faceted(mesh)));
    const floor = told.parts.find(part => part.kind === "plane" && part.body < 0 && Math.abs(part.turn[0]) > 0.999);
    const camera = {...told.camera}, ground = floor ? floor.place[2] : 0;
    const side = camera.distance / 6, power = 10 ** Math.floor(Math.log10(side));
    const checker = power * [1, 2, 5, 10].reduce((a, b) => Math.abs(Math.log(side / power / b)) < Math.abs(Math.log(side / power / a)) ? b : a);
    const colours = () => {
      const style = getComputedStyle(player);
      return ["sky", "floor", "square"].map(name => style.getPropertyValue(`--${name}`).match(/\w\w/g).map(two => parseInt(two, 16) / 255));
    };

    // Where the camera is: it follows a body midway to the goal, far enough away to show them both.
    function aim(row, episode, aspect) {
      const [azimuth, elevation] = [camera.azimuth, camera.elevation].map(angle => angle * Math.PI / 180);
      const level = [Math.cos(azimuth), Math.sin(azimuth)];
      const forward = [Math.cos(elevation) * level[0], Math.cos(elevation) * level[1], Math.sin(elevation)];
      const right = [level[1], -level[0], 0], up = cross(right, forward);
      const slope = Math.tan(camera.field * Math.PI / 360), look = [...camera.lookat];
      let distance = camera.distance;
      if (camera.follow >= 0) {
        const body = row.subarray(7 * camera.follow, 7 * camera.follow + 2), half = [0, 0, 0];
        for (let axis = 0; axis < (episode.place ? Math.min(told.marker.numbers, 2) : 0); axis++) half[axis] = (episode.place[axis] - body[axis]) / 2;
        look[0] = body[0] + half[0]; look[1] = body[1] + half[1];
        const room = Math.max(1.25 * (told.marker ? told.marker.radius : 0), 0.25 * distance);
        const across = Math.max(Math.abs(dot(up, half)) + room, (Math.abs(dot(right, half)) + room) / aspect);
        distance = Math.max(distance, across / slope + Math.abs(dot(forward, half)));
      }
      const eye = look.map((value, axis) => value - distance * forward[axis]), near = distance / 100, far = 60 * distance;
      const rows = [right.map(value => value / slope / aspect), up.map(value => value / slope), forward];
      const depth = (far + near) / (far - near), lift = -2 * far * near / (far - near), view = new Float32Array(16);
      for (let axis = 0; axis < 3; axis++) {
        view.set([rows[0][axis], rows[1][axis], depth * forward[axis], forward[axis]], 4 * axis);
      }
      view.set([-dot(rows[0], eye), -dot(rows[1], eye), -depth * dot(forward, eye) + lift, -dot(forward, eye)], 12);
      return {view, eye, look, distance};
    }

    function put(solid, place, turn, size) {
      gl.bindBuffer(gl.ARRAY_BUFFER, solid.buffer);
      attributes.forEach((each, half) => gl.vertexAttribPointer(each, 3, gl.FLOAT, false, 24, 12 * half));
      gl.uniform3fv(uniform.place, place); gl.uniform4fv(uniform.turn, turn); gl.uniform3fv(uniform.size, size);
      gl.drawArrays(gl.TRIANGLES, 0, solid.count);
    }

    function putPart(part, row, size) {
      const pose = part.body < 0 ? [0, 0, 0, 1, 0, 0, 0] : row.subarray(7 * part.body, 7 * part.body + 7);
      const body = Array.from(pose).slice(3), turn = times(body, part.turn);
      const place = turned(body, part.place).map((value, axis) => value + pose[axis]);
      if (part.kind === "mesh") return put(meshes[part.mesh], place, turn, size);
      if (part.kind !== "capsule") return put(solids[part.kind], place, turn, size);
      put(solids.cylinder, place, turn, size);
      for (const side of [-1, 1]) {
        const offset = turned(turn, [0, 0, side * size[2]]);
        put(solids.ellipsoid, place.map((value, axis) => value + offset[axis]), turn, [size[0], size[0], size[0]]);
      }
    }

    function draw(row, episode, there) {
      const ratio = Math.min(devicePixelRatio || 1, 2), [sky, tile, square] = colours();
      [canvas.width, canvas.height] = [canvas.clientWidth, canvas.clientHeight].map(size => Math.max(1, Math.round(size * ratio)));
      const {view, eye, look, distance} = aim(row, episode, canvas.width / canvas.height);
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.enable(gl.DEPTH_TEST); gl.disable(gl.BLEND); gl.depthMask(true); gl.clearColor(...sky, 1);
      gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT | gl.STENCIL_BUFFER_BIT);
      gl.uniformMatrix4fv(uniform.view, false, view);
      for (const [name, value] of Object.entries({eye, look, sky, square, sun: SUN})) gl.uniform3fv(uniform[name], value);
      for (const [name, value] of Object.entries({far: distance, ground, shadow: 0, checker})) gl.uniform1f(uniform[name], value);
      const parts = told.parts.map((part, index) => [part, episode.sizes[index] || part.size]);
      const [planes, others] = [parts.filter(([part]) => part.kind === "plane"), parts.filter(([part]) => part.kind !== "plane")];
      const colour = (rgb, alpha) => gl.uniform4fv(uniform.colour, [...rgb.slice(0, 3), alpha]);
      colour(tile, 1);
      for (const [part, size] of planes) putPart(part, row, size.slice(0, 2).map(half => half || 80 * camera.distance).concat(1));
      gl.uniform1f(uniform.checker, 0);
      const blend = () => { gl.enable(gl.BLEND); gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA); gl.depthMask(false); };
      if (floor) {  // each pixel of a shadow once, however many solids cast it
        blend(); gl.enable(gl.STENCIL_TEST); gl.stencilFunc(gl.EQUAL, 0, 255); gl.stencilOp(gl.KEEP, gl.KEEP, gl.INCR);
        gl.uniform1f(uniform.shadow, distance / 1500); colour([0, 0, 0], dark.matches ? 0.4 : 0.16);
        for (const [part, size] of others) if (part.colour[3] > 0.5) putPart(part, row, size);
        gl.uniform1f(uniform.shadow, 0); gl.disable(gl.STENCIL_TEST); gl.disable(gl.BLEND); gl.depthMask(true);
      }
      for (const [part, size] of others) if (part.colour[3] >= 1) { colour(part.colour, 1); putPart(part, row, size); }
      const goal = there ? [0.10, 0.68, 0.35] : [0.70, 0.84, 0.12], level = [1, 0, 0, 0];
      const radius = told.marker ? told.marker.radius : 0;
      if (episode.place) { colour(goal, 1); put(solids.ellipsoid, episode.place, level, Array(3).fill(0.12 * radius)); }
      blend();
      for (const [part, size] of others) if (part.colour[3] < 1) { colour(part.colour, part.colour[3]); putPart(part, row, size); }
      if (episode.place) {
        const [kind, size] = {1: ["box", [radius, 2 * radius, radius / 4]], 2: ["cylinder", [radius, radius, radius / 4]],
          3: ["ellipsoid", [radius, radius, radius]]}[told.marker.numbers];
        colour(goal, 0.4); put(solids[kind], episode.place, level, size);
      }
    }
    return {draw, camera};
  }

  // -- Goals to click ------------------------------------------------------------------------------

  const number = value => Math.abs(value) < 5e-4 ? "0" : String(+value.toPrecision(3)).replace("-", "−");
  const named = episode => "goal " + axes.map((axis, at) => `${axis.name} ${number(episode.point[at])}${axis.unit ? " " + axis.unit : ""}`).join(", ");
  const low = told.plan.low, extent = told.plan.high.map((high, axis) => high - low[axis]);
  const across = point => (point[0] - low[0]) / extent[0];
  const down = point => axes.length > 1 ? 1 - (point[1] - low[1]) / extent[1] : 0.5;
  const svg = field.querySelector("svg"), [whole, past] = svg.querySelectorAll("polyline"), here = field.querySelector(".here");
  const dots = told.episodes.map((episode, index) => {
    const dot = document.createElement("button");
    dot.type = "button"; dot.className = episode.success_s === null ? "dot missed" : "dot"; dot.tabIndex = -1;
    dot.setAttribute("aria-label", `${named(episode)}: ${episode.success_s === null ? "missed" : "reached"}`);
    dot.style.left = `${100 * across(episode.point)}%`; dot.style.top = `${100 * down(episode.point)}%`;
    field.append(dot);
    return dot;
  });

  function layPlan() {
    const one = new Set(axes.map(axis => axis.unit)).size === 1;
    const aspect = axes.length < 2 ? 6 : one ? Math.min(Math.max(extent[0] / extent[1], 0.6), 2.5) : 1;
    field.style.aspectRatio = aspect; field.style.maxWidth = `${Math.round(Math.min(1, aspect) * 440)}px`;
    for (const [x, y, endX, endY] of told.plan.walls) {
      const wall = document.createElementNS(svg.namespaceURI, "rect");
      const box = {x: 100 * across([x, 0]), y: 100 * down([0, endY]), width: 100 * (endX - x) / extent[0], height: 100 * (endY - y) / extent[1]};
      for (const [name, value] of Object.entries(box)) wall.setAttribute(name, value);
      svg.prepend(wall);
    }
    const labels = player.querySelectorAll(".axis");
    axes.forEach((axis, at) => { labels[1 - at].textContent = `${axis.name}${axis.unit ? ` (${axis.unit})` : ""} ${at ? "↑" : "→"}`; });
    const reached = told.episodes.filter(episode => episode.success_s !== null).length;
    player.querySelector(".reached").textContent = `reached (${reached})`;
    player.querySelector(".unreached").textContent = `missed (${told.episodes.length - reached})`;
  }

  function sizeDots() {
    const centres = told.episodes.map(episode => [across(episode.point) * field.clientWidth, down(episode.point) * field.clientHeight]);
    let gap = 34;
    centres.forEach((one, index) => centres.slice(index + 1).forEach(other => { gap = Math.min(gap, Math.hypot(one[0] - other[0], one[1] - other[1])); }));
    field.style.setProperty("--dot", `${Math.round(Math.max(9, Math.min(20, 0.62 * gap)))}px`);
  }

  const line = rows => rows.map(row => `${(100 * across(row)).toFixed(2)},${(100 * down(row)).toFixed(2)}`).join(" ");
  const achieved = (episode, frame) => episode.values.subarray(frame * width + after + 2, frame * width + after + 4);
  const frames = (episode, count) => Array.from({length: count}, (_, frame) => achieved(episode, frame));

  // -- Playing -------------------------------------------------------------------------------------

  const renderer = makeRenderer();
  if (!renderer) scene.classList.add("none");

  function show() {
    const episode = told.episodes[chosen], row = sample(episode, time), there = row[after + 1] > 0.5;
    const done = time >= end(episode), won = episode.success_s !== null && time >= episode.success_s - 1e-9;
    if (renderer) renderer.draw(row, episode, there);
    const point = row.subarray(after + 2), count = Math.floor(time / told.frame_s) + 1;
    past.setAttribute("points", line([...frames(episode, count), point]));
    here.style.left = `${100 * across(point)}%`; here.style.top = `${100 * down(point)}%`;
    here.hidden = [across(point), down(point)].some(share => share < 0 || share > 1);
    slider.value = time;
    slider.setAttribute("aria-valuetext", `${time.toFixed(1)} s`);
    const distance = `${number(row[after])}${told.distance_unit ? " " + told.distance_unit : ""} to the goal`;
    clock.textContent = `${time.toFixed(1)} s · ${there ? "at the goal" : distance}`;
    const said = won ? `reached after ${episode.success_s.toFixed(1)} s` : done ? (episode.unstable ? "the physics diverged" : "missed") : "";
    if (outcome.textContent !== said) outcome.textContent = said;
    outcome.classList.toggle("won", won);
    play.textContent = playing ? "Pause" : "Play";
  }

  function choose(index, seconds = 0) {
    dots[chosen].removeAttribute("aria-current"); dots[chosen].tabIndex = -1;
    chosen = index; time = seconds; playing = false;
    dots[chosen].setAttribute("aria-current", "true"); dots[chosen].tabIndex = 0;
    const episode = told.episodes[chosen];
    slider.max = end(episode);
    whole.setAttribute("points", line(frames(episode, episode.frames)));
    player.querySelector(".goal").textContent = named(episode);
    show();
  }

  function start() {
    const episode = told.episodes[chosen];
    if (time >= end(episode)) time = 0;
    playing = true; last = performance.now();
    show(); cancelAnimationFrame(frame); frame = requestAnimationFrame(go);
  }

  function go(now) {
    if (!playing) return;
    time = Math.min(time + Math.max(0, now - last) / 1000, end(told.episodes[chosen])); last = now;
    playing = time < end(told.episodes[chosen]);
    show();
    if (playing) frame = requestAnimationFrame(go);
  }

  // Whoever asks for less motion sees where it ends, and plays it with the button.
  function go_to(index) {
    choose(index, calm.matches ? end(told.episodes[index]) : 0);
    if (!calm.matches) start();
  }

  function beside(event) {
    const way = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    if (!way) return;
    event.preventDefault();
    const spot = episode => [across(episode.point) * field.clientWidth, down(episode.point) * field.clientHeight];
    const from = spot(told.episodes[chosen]);
    let best = -1, least = Infinity;
    told.episodes.forEach((episode, index) => {
      const [x, y] = spot(episode), ahead = (x - from[0]) * way[0] + (y - from[1]) * way[1];
      const aside = Math.abs((x - from[0]) * way[1]) + Math.abs((y - from[1]) * way[0]);
      if (ahead > 1 && ahead >= 0.5 * aside && ahead + 2 * aside < least) [best, least] = [index, ahead + 2 * aside];
    });
    if (best >= 0) { choose(best); dots[best].focus(); }
  }

  function listen() {
    field.addEventListener("click", event => {
      const box = field.getBoundingClientRect(), pointed = event.detail > 0;
      const far = episode => Math.hypot(across(episode.point) * box.width - (event.clientX - box.left), down(episode.point) * box.height - (event.clientY - box.top));
      const distances = told.episodes.map(far);
      const index = pointed ? distances.indexOf(Math.min(...distances)) : dots.indexOf(event.target);
      if (index < 0) return;
      go_to(index); dots[index].focus({preventScroll: true});
    });
    field.addEventListener("keydown", beside);
    play.addEventListener("click", () => { if (playing) { playing = false; show(); } else start(); });
    slider.addEventListener("input", () => { playing = false; time = +slider.value; show(); });
    if (renderer) {
      scene.addEventListener("pointerdown", event => { if (event.pointerType !== "touch") scene.setPointerCapture(event.pointerId); });
      scene.addEventListener("pointermove", event => {
        if (!scene.hasPointerCapture(event.pointerId)) return;
        renderer.camera.azimuth -= 0.4 * event.movementX;
        renderer.camera.elevation = Math.min(-4, Math.max(-89, renderer.camera.elevation - 0.3 * event.movementY));
        if (!playing) show();
      });
    }
    dark.addEventListener("change", show);
    new ResizeObserver(() => { sizeDots(); show(); }).observe(player);
  }

  unpack().then(() => {
    layPlan();
    const long = told.episodes.map(episode => episode.success_s ?? -1);
    choose(long.indexOf(Math.max(...long)));
    listen();
    player.classList.add("ready");
  }, () => player.classList.add("failed"));
})();
