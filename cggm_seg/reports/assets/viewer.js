"use strict";
(() => {
  const { cases, classes, colors, titles } = JSON.parse(document.getElementById("viewer-data").textContent);
  const element = (name) => document.getElementById(`viewer-${name}`);
  const SCALE = 3;
  const ERRORS = { missed: [255, 210, 63], surplus: [53, 201, 255], other: [255, 95, 210] };
  const rgb = colors.map((c) => c && [1, 3, 5].map((i) => Number.parseInt(c.slice(i, i + 2), 16)));
  // Which axis of the volume, LPS, runs to the right, which one down, whether upside down, and which
  // through; and which sides of the patient are left, right, up and down.
  const PLANES = {
    axial: { right: 0, down: 1, flipped: false, through: 2, sides: "RLAP" },
    coronal: { right: 0, down: 2, flipped: true, through: 1, sides: "RLSI" },
    sagittal: { right: 1, down: 2, flipped: true, through: 0, sides: "APSI" },
  };
  const state = { number: 0, volume: null, labels: null, position: [0, 0, 0] };

  const bytes = (base64) => Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));

  async function readLabels(item) {
    const stream = new Blob([bytes(item.labels)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  async function readImage(item, name) {
    const picture = new Image();
    picture.src = item.images[name];
    await picture.decode();
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [picture.width, picture.height];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(picture, 0, 0);
    const pixels = context.getImageData(0, 0, picture.width, picture.height).data;
    const [width, height, depth] = item.shape;
    const volume = new Uint8Array(width * height * depth);
    for (let z = 0, i = 0; z < depth; z++) {
      const left = (z % item.columns) * width, top = Math.floor(z / item.columns) * height;
      for (let y = 0; y < height; y++)
        for (let x = 0; x < width; x++) volume[i++] = pixels[4 * ((top + y) * picture.width + left + x)];
    }
    return volume;
  }

  function overlayColor(value, kind) {
    const truth = value & 15, prediction = value >> 4;
    if (kind === "truth") return rgb[truth];
    if (kind === "prediction") return rgb[prediction];
    if (kind === "none" || truth === prediction) return null;
    return prediction === 0 ? ERRORS.missed : truth === 0 ? ERRORS.surplus : ERRORS.other;
  }

  function drawPlane(name) {
    const item = cases[state.number], plane = PLANES[name], canvas = element(name);
    const width = item.shape[plane.right], height = item.shape[plane.down];
    const stride = [1, item.shape[0], item.shape[0] * item.shape[1]];
    const kind = document.querySelector("input[name=viewer-overlay]:checked").value;
    const opacity = element("opacity").value / 100;
    const image = new ImageData(width, height);
    const base = state.position[plane.through] * stride[plane.through];
    for (let row = 0, p = 0; row < height; row++) {
      const down = plane.flipped ? height - 1 - row : row;
      for (let column = 0; column < width; column++, p += 4) {
        const i = base + column * stride[plane.right] + down * stride[plane.down];
        const gray = state.volume[i], color = overlayColor(state.labels[i], kind);
        for (let c = 0; c < 3; c++) image.data[p + c] = color ? gray + opacity * (color[c] - gray) : gray;
        image.data[p + 3] = 255;
      }
    }
    show(canvas, image, item.spacing[plane.right] * width, item.spacing[plane.down] * height);
    cross(canvas, toCanvas(plane, item));
    letter(canvas, plane.sides);
    const here = state.position[plane.through] + item.origin[plane.through];
    element(`${name}-number`).textContent = `slice ${here}`;
    element(`${name}-slice`).value = state.position[plane.through];
    canvas.setAttribute("aria-label", `${name} plane, slice ${here}, overlay: ${kind}`);
  }

  function show(canvas, image, width, height) {
    const small = document.createElement("canvas");
    [small.width, small.height] = [image.width, image.height];
    small.getContext("2d").putImageData(image, 0, 0);
    [canvas.width, canvas.height] = [Math.round(SCALE * image.width), Math.round(SCALE * image.width * height / width)];
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  }

  function toCanvas(plane, item) {
    const column = state.position[plane.right] + 0.5, down = state.position[plane.down] + 0.5;
    const height = item.shape[plane.down];
    return [column / item.shape[plane.right], (plane.flipped ? height - down : down) / height];
  }

  function cross(canvas, [x, y]) {
    const context = canvas.getContext("2d");
    context.strokeStyle = "rgba(124, 255, 124, .75)";
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(x * canvas.width, 0);
    context.lineTo(x * canvas.width, canvas.height);
    context.moveTo(0, y * canvas.height);
    context.lineTo(canvas.width, y * canvas.height);
    context.stroke();
  }

  function letter(canvas, [left, right, up, down]) {
    const context = canvas.getContext("2d"), size = Math.max(10, canvas.width / 22);
    const { width, height } = canvas;
    context.font = `${size}px system-ui, sans-serif`;
    context.fillStyle = "#c7ccd3";
    context.textAlign = "center";
    context.textBaseline = "middle";
    const places = [[left, size, height / 2], [right, width - size, height / 2], [up, width / 2, size], [down, width / 2, height - size]];
    for (const [text, x, y] of places) context.fillText(text, x, y);
  }

  function draw() {
    if (!state.volume) return;
    for (const name of Object.keys(PLANES)) drawPlane(name);
    const item = cases[state.number], [x, y, z] = state.position;
    const i = x + item.shape[0] * (y + item.shape[1] * z);
    const at = state.position.map((p, axis) => p + item.origin[axis]).join(", ");
    const label = state.labels[i];
    element("position").textContent = `${item.id}, voxel ${at}: ${titles[element("image").value]} ` +
      `${state.volume[i]} of 255, truth ${classes[label & 15]}, prediction ${classes[label >> 4]}`;
    const different = document.querySelector("input[name=viewer-overlay]:checked").value === "difference";
    element("errors").hidden = !different;
    element("classes").hidden = different;
  }

  function move(axis, index) {
    const size = cases[state.number].shape[axis];
    state.position[axis] = Math.min(size - 1, Math.max(0, Math.round(index)));
  }

  async function open(number, name) {
    const item = cases[number];
    const [labels, volume] = await Promise.all([readLabels(item), readImage(item, name)]);
    if (number !== state.number || name !== element("image").value) return; // another choice since
    const first = !state.labels || state.shown !== number;
    Object.assign(state, { labels, volume, shown: number });
    if (first) state.position = [...item.start];
    for (const [plane, { through }] of Object.entries(PLANES)) element(`${plane}-slice`).max = item.shape[through] - 1;
    draw();
  }

  function reopen() {
    state.number = Number(element("case").value);
    open(state.number, element("image").value).catch((error) => {
      element("position").textContent = `This browser cannot show the volumes (${error.message}).`;
    });
  }

  function listen(name, plane) {
    const canvas = element(name);
    const point = (event) => {
      const item = cases[state.number], box = canvas.getBoundingClientRect();
      // The picture may be smaller than its element, see object-fit.
      const scale = Math.min(box.width / canvas.width, box.height / canvas.height);
      const left = (box.width - scale * canvas.width) / 2, top = (box.height - scale * canvas.height) / 2;
      const x = (event.clientX - box.left - left) / (scale * canvas.width);
      const y = (event.clientY - box.top - top) / (scale * canvas.height);
      move(plane.right, x * item.shape[plane.right] - 0.5);
      move(plane.down, (plane.flipped ? 1 - y : y) * item.shape[plane.down] - 0.5);
      draw();
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); point(event); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      move(plane.through, state.position[plane.through] - Math.sign(event.deltaY));
      draw();
    }, { passive: false });
    const down = plane.flipped ? -1 : 1;
    const keys = {
      ArrowLeft: [plane.right, -1], ArrowRight: [plane.right, 1],
      ArrowUp: [plane.down, -down], ArrowDown: [plane.down, down],
      PageUp: [plane.through, 1], PageDown: [plane.through, -1],
    };
    canvas.addEventListener("keydown", (event) => {
      const key = keys[event.key];
      if (!key) return;
      event.preventDefault();
      move(key[0], state.position[key[0]] + key[1]);
      draw();
    });
    element(`${name}-slice`).addEventListener("input", (event) => { move(plane.through, Number(event.target.value)); draw(); });
  }

  for (const [name, plane] of Object.entries(PLANES)) listen(name, plane);
  for (const name of ["case", "image"]) element(name).addEventListener("change", reopen);
  element("opacity").addEventListener("input", draw);
  for (const radio of document.getElementsByName("viewer-overlay")) radio.addEventListener("change", draw);
  reopen();
})();
