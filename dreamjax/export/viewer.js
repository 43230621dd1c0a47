// Shows the page's own GLB file: positions, normals and linear vertex colours of one mesh (y up).
"use strict";
(function () {
  const canvas = document.getElementById("mesh-view");
  const status = document.getElementById("mesh-status");
  const gl = canvas.getContext("webgl2") || canvas.getContext("webgl");
  if (!gl) {
    status.textContent = "This browser offers no WebGL, so the mesh cannot be turned here.";
    return;
  }
  gl.getExtension("OES_element_index_uint");

  const text = atob(document.getElementById("mesh-file").href.split(",")[1]);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0)).buffer;
  const length = new DataView(bytes).getUint32(12, true);
  const gltf = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 20, length)));
  const primitive = gltf.meshes[0].primitives[0];
  function read(index, Type) {
    const view = gltf.bufferViews[gltf.accessors[index].bufferView];
    const start = 28 + length + view.byteOffset;
    return new Type(bytes, start, view.byteLength / Type.BYTES_PER_ELEMENT);
  }

  const program = gl.createProgram();
  function shader(kind, source) {
    const part = gl.createShader(kind);
    gl.shaderSource(part, source);
    gl.compileShader(part);
    gl.attachShader(program, part);
  }
  shader(gl.VERTEX_SHADER, `
    attribute vec3 POSITION, NORMAL, COLOR_0;
    uniform mat4 project;
    uniform mat3 turn;
    uniform vec3 centre;
    uniform float distance;
    varying vec3 normal, color;
    void main() {
      normal = turn * NORMAL;
      vec3 c = COLOR_0;
      color = mix(12.92 * c, 1.055 * pow(c, vec3(1.0 / 2.4)) - 0.055, step(0.0031308, c));
      gl_Position = project * vec4(turn * (POSITION - centre) - vec3(0, 0, distance), 1);
    }`);
  shader(gl.FRAGMENT_SHADER, `
    precision mediump float;
    uniform float colored;
    varying vec3 normal, color;
    void main() {
      float light = 0.4 + 0.6 * max(dot(normalize(normal), normalize(vec3(0.3, 0.5, 1))), 0.0);
      gl_FragColor = vec4(mix(vec3(0.85), color, colored) * light, 1);
    }`);
  gl.linkProgram(program);
  gl.useProgram(program);
  for (const [name, index] of Object.entries(primitive.attributes)) {
    const place = gl.getAttribLocation(program, name);
    const color = name === "COLOR_0";
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, read(index, color ? Uint8Array : Float32Array), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(place);
    if (color) gl.vertexAttribPointer(place, 4, gl.UNSIGNED_BYTE, true, 0, 0);
    else gl.vertexAttribPointer(place, 3, gl.FLOAT, false, 0, 0);
  }
  const indices = read(primitive.indices, Uint32Array);
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
  gl.enable(gl.DEPTH_TEST);

  const { min, max } = gltf.accessors[primitive.attributes.POSITION];
  const centre = min.map((low, i) => (low + max[i]) / 2);
  const positions = read(primitive.attributes.POSITION, Float32Array);
  let radius = 0;
  for (let i = 0; i < positions.length; i += 3)
    radius = Math.max(radius, Math.hypot(...centre.map((c, j) => positions[i + j] - c)));
  const start = { azimuth: 0.5, elevation: 0.3, distance: 3 };
  const eye = { ...start };
  const colored = document.getElementById("mesh-colored");

  function draw() {
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * scale);
    canvas.height = Math.round(canvas.clientHeight * scale);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const [ca, sa] = [Math.cos(eye.azimuth), Math.sin(eye.azimuth)];
    const [ce, se] = [Math.cos(eye.elevation), Math.sin(eye.elevation)];
    const [near, far, focal] = [0.05, 20, 2.6];
    const short = Math.min(canvas.width, canvas.height);
    const [fx, fy] = [(focal * short) / canvas.width, (focal * short) / canvas.height];
    const set = (name) => gl.getUniformLocation(program, name);
    gl.uniformMatrix3fv(set("turn"), false, [
      ca / radius, (-se * sa) / radius, (ce * sa) / radius,
      0, ce / radius, se / radius,
      -sa / radius, (-se * ca) / radius, (ce * ca) / radius]);
    gl.uniformMatrix4fv(set("project"), false, [
      fx, 0, 0, 0, 0, fy, 0, 0,
      0, 0, (far + near) / (near - far), -1, 0, 0, (2 * far * near) / (near - far), 0]);
    gl.uniform3fv(set("centre"), centre);
    gl.uniform1f(set("distance"), eye.distance);
    gl.uniform1f(set("colored"), colored.checked ? 1 : 0);
    gl.drawElements(gl.TRIANGLES, indices.length, gl.UNSIGNED_INT, 0);
  }

  let spinning = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  let last = null;
  function spin(now) {
    if (!spinning) return;
    if (last !== null) eye.azimuth += (now - last) * 0.0004;
    last = now;
    draw();
    requestAnimationFrame(spin);
  }
  function stop() {
    spinning = false;
  }
  const fingers = new Map();
  canvas.addEventListener("pointerdown", (event) => {
    stop();
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    canvas.setPointerCapture(event.pointerId);
  });
  const zoom = (factor) => {
    eye.distance = Math.min(Math.max(eye.distance * factor, 1.3), 12);
  };
  const turn = (right, up) => {
    eye.azimuth -= right;
    eye.elevation = Math.min(Math.max(eye.elevation + up, -1.55), 1.55);
  };
  const apart = () => {
    const [a, b] = [...fingers.values()];
    return Math.hypot(a[0] - b[0], a[1] - b[1]);
  };
  canvas.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const spread = fingers.size === 2 ? apart() : 0;
    fingers.set(event.pointerId, [event.clientX, event.clientY]);
    if (spread) zoom(spread / Math.max(apart(), 1));
    else turn((event.clientX - before[0]) * 0.01, (event.clientY - before[1]) * 0.01);
    draw();
  });
  for (const name of ["pointerup", "pointercancel"])
    canvas.addEventListener(name, (event) => fingers.delete(event.pointerId));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    stop();
    zoom(Math.exp(Math.max(-0.2, Math.min(0.2, event.deltaY * 0.001))));
    draw();
  }, { passive: false });
  canvas.addEventListener("dblclick", () => {
    Object.assign(eye, start);
    draw();
  });
  canvas.addEventListener("keydown", (event) => {
    const step = {
      ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1],
    }[event.key];
    if (!step) return;
    event.preventDefault();
    stop();
    turn(...step);
    draw();
  });
  colored.addEventListener("change", draw);
  new ResizeObserver(draw).observe(canvas);
  draw();
  requestAnimationFrame(spin);
})();
