// The map as a canvas: points, and pictures where there is room for them.
"use strict";

{
  const EXTENT = 100_000; // one more than the largest place that there can be
  const BINS = 128;
  const DEEPEST = 400; // times as close as the whole map
  const AT_ONCE = 6; // pictures that are fetched
  const MOST_KEPT = 600;
  const REACH = 24; // pixels around a point that mean it
  const ROOM = 0.88; // of the window that the whole map takes
  const STRETCH = 1.8;
  const FEW = 1500; // points in the window of which each may have its picture drawn

  const box = document.getElementById("map");
  const canvas = document.getElementById("map-canvas");
  const context = canvas?.getContext("2d");

  // Points by bins of the map, so that what is outside the window costs nothing.

  class Points {
    constructor({ images, x, y }) {
      this.images = images;
      this.x = Float64Array.from(x);
      this.y = Float64Array.from(y);
      this.width = Math.max(1, ...bounds(this.x));
      this.height = Math.max(1, ...bounds(this.y));
      this.starts = new Uint32Array(BINS * BINS + 1);
      for (let i = 0; i < images.length; i += 1) this.starts[this.bin(i) + 1] += 1;
      for (let at = 0; at < BINS * BINS; at += 1) this.starts[at + 1] += this.starts[at];
      const free = this.starts.slice();
      this.order = new Uint32Array(images.length);
      for (let i = 0; i < images.length; i += 1) {
        const bin = this.bin(i);
        this.order[free[bin]] = i;
        free[bin] += 1;
      }
    }

    bin(i) {
      return cell(this.y[i]) * BINS + cell(this.x[i]);
    }

    * inside(left, top, right, bottom) {
      for (let row = cell(top); row <= cell(bottom); row += 1) {
        const first = this.starts[row * BINS + cell(left)];
        const last = this.starts[row * BINS + cell(right) + 1];
        for (let at = first; at < last; at += 1) yield this.order[at];
      }
    }
  }

  function bounds(values) {
    let most = 0;
    for (const value of values) if (value > most) most = value;
    return [most];
  }

  function cell(value) {
    return Math.min(Math.max(Math.floor((value / EXTENT) * BINS), 0), BINS - 1);
  }

  // Thumbnails, the last used ones kept.

  class Pictures {
    constructor(changed) {
      this.changed = changed;
      this.kept = new Map();
      this.loading = 0;
      this.wanted = [];
    }

    get(image, size) {
      const key = `${image}?size=${size}`;
      const found = this.kept.get(key);
      if (!found) return null;
      this.kept.delete(key);
      this.kept.set(key, found);
      return found;
    }

    want(keys) {
      // What an earlier view wanted and is not fetched yet, nobody wants any more.
      this.wanted = keys;
      this.fetch();
    }

    fetch() {
      while (this.loading < AT_ONCE && this.wanted.length) {
        const [image, size] = this.wanted.shift();
        const key = `${image}?size=${size}`;
        if (this.kept.has(key)) continue;
        const entry = { img: new Image(), ready: false };
        this.kept.set(key, entry);
        this.loading += 1;
        const ended = (ready) => {
          this.loading -= 1;
          entry.ready = ready;
          this.drop();
          this.changed();
          this.fetch();
        };
        entry.img.onload = () => ended(true);
        entry.img.onerror = () => ended(false);
        entry.img.src = `/api/thumbnails/${key}`;
      }
    }

    drop() {
      for (const key of this.kept.keys()) {
        if (this.kept.size <= MOST_KEPT) return;
        this.kept.delete(key);
      }
    }
  }

  class View {
    constructor(points) {
      this.points = points;
      this.pictures = new Pictures(() => this.later());
      this.shown = []; // pictures on the canvas: what they are and where
      this.middle = null; // the point that Enter opens
      this.later = this.later.bind(this);
      this.measure();
      if (!this.recall()) this.all();
    }

    measure() {
      const ratio = window.devicePixelRatio || 1;
      this.width = canvas.clientWidth;
      this.height = canvas.clientHeight;
      canvas.width = Math.round(this.width * ratio);
      canvas.height = Math.round(this.height * ratio);
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      // The window is filled better where one direction is stretched a little.
      const { width, height } = this.points;
      const slack = (this.width * height) / (this.height * width);
      this.wider = Math.min(Math.max(slack, 1), STRETCH);
      this.higher = Math.min(Math.max(1 / slack, 1), STRETCH);
      this.least = ROOM * Math.min(
        this.width / (width * this.wider), this.height / (height * this.higher),
      );
    }

    all() {
      this.x = this.points.width / 2;
      this.y = this.points.height / 2;
      this.scale = this.least;
    }

    get depth() {
      return this.scale / this.least;
    }

    // From the map to the window, and back

    at(x, y) {
      return [
        (x - this.x) * this.scale * this.wider + this.width / 2,
        (y - this.y) * this.scale * this.higher + this.height / 2,
      ];
    }

    from(left, top) {
      return [
        (left - this.width / 2) / (this.scale * this.wider) + this.x,
        (top - this.height / 2) / (this.scale * this.higher) + this.y,
      ];
    }

    pan(left, top) {
      this.x -= left / (this.scale * this.wider);
      this.y -= top / (this.scale * this.higher);
      this.later();
    }

    zoom(factor, left = this.width / 2, top = this.height / 2) {
      const [x, y] = this.from(left, top);
      this.scale = Math.min(Math.max(this.scale * factor, this.least), this.least * DEEPEST);
      this.x = x - (left - this.width / 2) / (this.scale * this.wider);
      this.y = y - (top - this.height / 2) / (this.scale * this.higher);
      this.later();
    }

    // Drawing, once for each frame of the screen

    later() {
      if (this.waits) return;
      this.waits = true;
      requestAnimationFrame(() => {
        this.waits = false;
        this.draw();
      });
    }

    draw() {
      this.x = Math.min(Math.max(this.x, 0), this.points.width);
      this.y = Math.min(Math.max(this.y, 0), this.points.height);
      const colours = getComputedStyle(canvas);
      context.clearRect(0, 0, this.width, this.height);
      const chosen = this.drawPoints(colours.color);
      this.drawPictures(chosen, colours);
      if (document.activeElement === canvas) this.drawMiddle(colours);
      this.keep();
    }

    drawPoints(colour) {
      // Of many, the first image in each cell of the map may have its picture drawn: the same one
      // wherever the window is.
      const side = this.side();
      const unit = 2 ** Math.round(Math.log2(side / this.scale));
      const dot = Math.min(2 + Math.log2(this.depth) / 1.5, 5);
      const [left, top] = this.from(-side, -side);
      const [right, bottom] = this.from(this.width + side, this.height + side);
      const first = new Map();
      const all = [];
      context.fillStyle = colour;
      context.globalAlpha = Math.min(0.35 + 20 / Math.sqrt(this.points.images.length), 0.9);
      const { x, y } = this.points;
      for (const i of this.points.inside(left, top, right, bottom)) {
        const [h, v] = this.at(x[i], y[i]);
        context.fillRect(h - dot / 2, v - dot / 2, dot, dot);
        if (!side) continue;
        if (all.length <= FEW) all.push(i);
        const column = Math.floor((x[i] * this.wider) / unit);
        const key = column * 4_194_304 + Math.floor((y[i] * this.higher) / unit);
        const other = first.get(key);
        if (other === undefined || i < other) first.set(key, i);
      }
      context.globalAlpha = 1;
      const candidates = all.length <= FEW ? all : [...first.values()];
      return this.apart(candidates.sort((a, b) => a - b), side);
    }

    apart(chosen, side) {
      // What would hide another picture is tried smaller, and else stays a point until it is nearer.
      const kept = [];
      for (const size of [side, 0.55 * side]) {
        for (const i of chosen) {
          const [h, v] = this.at(this.points.x[i], this.points.y[i]);
          const hides = (one) => {
            const least = (one.size + size) / 2;
            return Math.abs(one.h - h) < least + 4 && Math.abs(one.v - v) < 0.85 * least + 4;
          };
          if (!kept.some(hides)) kept.push({ i, h, v, size });
        }
      }
      return kept;
    }

    side() {
      // The longer side of a picture: nothing while all is shown of a large map, then growing.
      if (this.points.images.length > FEW && this.depth < 1.5) return 0;
      return Math.min(44 + 14 * Math.log2(this.depth), 128);
    }

    drawPictures(chosen, colours) {
      const pixels = this.side() * (window.devicePixelRatio || 1) > 170 ? 320 : 160;
      const wanted = [];
      this.shown = [];
      context.fillStyle = colours.backgroundColor;
      for (const { i, h, v, size } of chosen) {
        const image = this.points.images[i];
        const entry = this.pictures.get(image, pixels);
        if (!entry) wanted.push([image, pixels, Math.hypot(h - this.width / 2, v - this.height / 2)]);
        const drawn = entry?.ready ? entry : this.pictures.get(image, 160);
        if (!drawn?.ready) continue;
        const { naturalWidth: wide, naturalHeight: high } = drawn.img;
        const w = (size * wide) / Math.max(wide, high);
        const t = (size * high) / Math.max(wide, high);
        context.fillRect(h - w / 2 - 2, v - t / 2 - 2, w + 4, t + 4);
        context.drawImage(drawn.img, h - w / 2, v - t / 2, w, t);
        this.shown.push({ i, left: h - w / 2, top: v - t / 2, width: w, height: t });
      }
      wanted.sort((a, b) => a[2] - b[2]);
      this.pictures.want(wanted);
    }

    drawMiddle(colours) {
      const found = this.near(this.width / 2, this.height / 2, Math.max(this.width, this.height));
      if (found === null) return;
      const drawn = this.shown.find((one) => one.i === found);
      const [h, v] = this.at(this.points.x[found], this.points.y[found]);
      const at = drawn ?? { left: h - 6, top: v - 6, width: 12, height: 12 };
      context.strokeStyle = colours.outlineColor;
      context.lineWidth = 3;
      context.strokeRect(at.left - 3, at.top - 3, at.width + 6, at.height + 6);
      this.tell(found);
    }

    tell(found) {
      if (this.middle === found) return;
      this.middle = found;
      clearTimeout(this.telling);
      this.telling = setTimeout(() => {
        document.getElementById("said").textContent =
          `Picture ${this.points.images[found]} is in the middle. Enter opens it.`;
      }, 400);
    }

    // What is meant

    hit(left, top) {
      for (let at = this.shown.length - 1; at >= 0; at -= 1) {
        const one = this.shown[at];
        if (left >= one.left && left <= one.left + one.width
            && top >= one.top && top <= one.top + one.height) return one.i;
      }
      return this.near(left, top, REACH);
    }

    near(left, top, reach) {
      let [best, least] = [null, reach * reach];
      const [x0, y0] = this.from(left - reach, top - reach);
      const [x1, y1] = this.from(left + reach, top + reach);
      for (const i of this.points.inside(x0, y0, x1, y1)) {
        const [h, v] = this.at(this.points.x[i], this.points.y[i]);
        const far = (h - left) ** 2 + (v - top) ** 2;
        if (far <= least) [best, least] = [i, far];
      }
      return best;
    }

    open(found, elsewhere = false) {
      if (found === null) return;
      const url = `/images/${this.points.images[found]}`;
      if (elsewhere) window.open(url, "_blank", "noopener");
      else location.assign(url);
    }

    // Where one was, for whoever comes back from a picture

    keep() {
      clearTimeout(this.keeping);
      this.keeping = setTimeout(() => {
        const place = [this.x, this.y].map(Math.round).concat(this.depth.toFixed(3)).join(",");
        history.replaceState(history.state, "", `#${place}`);
      }, 300);
    }

    recall() {
      const [x, y, depth] = location.hash.slice(1).split(",").map(Number);
      if (![x, y, depth].every(Number.isFinite)) return false;
      this.x = x;
      this.y = y;
      this.scale = this.least * Math.min(Math.max(depth, 1), DEEPEST);
      return true;
    }
  }

  // One pointer moves the map, two zoom it, and one that did not move opens a picture.

  function followPointers(view) {
    const down = new Map();
    let moved = 0;
    const place = (event) => [event.offsetX, event.offsetY];
    const spread = ([a, b]) => Math.hypot(a[0] - b[0], a[1] - b[1]);
    const between = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];

    canvas.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      canvas.setPointerCapture(event.pointerId);
      if (!down.size) moved = 0;
      down.set(event.pointerId, place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = place(event);
      if (!down.has(event.pointerId)) {
        canvas.classList.toggle("over", view.hit(...now) !== null);
        return;
      }
      const before = [...down.values()];
      const last = down.get(event.pointerId);
      down.set(event.pointerId, now);
      moved += Math.hypot(now[0] - last[0], now[1] - last[1]);
      if (moved < 5) return;
      canvas.classList.add("moving");
      const after = [...down.values()];
      if (down.size === 1) {
        view.pan(now[0] - last[0], now[1] - last[1]);
      } else if (down.size === 2) {
        const [from, to] = [between(before), between(after)];
        view.pan(to[0] - from[0], to[1] - from[1]);
        view.zoom(spread(after) / Math.max(spread(before), 1), ...to);
      }
    });
    const up = (event) => {
      if (!down.delete(event.pointerId)) return;
      canvas.classList.remove("moving");
      if (event.type === "pointerup" && moved < 5 && !down.size) {
        view.open(view.hit(...place(event)), event.ctrlKey || event.metaKey);
      }
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      const lines = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 20 : 1;
      const speed = event.ctrlKey ? 0.01 : 0.002;
      view.zoom(Math.exp(-event.deltaY * lines * speed), ...place(event));
    }, { passive: false });
  }

  function followKeys(view) {
    const step = 80;
    const keys = {
      ArrowLeft: () => view.pan(step, 0),
      ArrowRight: () => view.pan(-step, 0),
      ArrowUp: () => view.pan(0, step),
      ArrowDown: () => view.pan(0, -step),
      "+": () => view.zoom(1.5),
      "=": () => view.zoom(1.5),
      "-": () => view.zoom(1 / 1.5),
      0: () => whole(view),
      Home: () => whole(view),
      Enter: () => view.open(view.middle),
      " ": () => view.open(view.middle),
    };
    canvas.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      event.stopPropagation();
      keys[event.key]();
    });
    for (const change of ["focus", "blur"]) canvas.addEventListener(change, view.later);
  }

  function whole(view) {
    view.all();
    view.later();
  }

  function followButtons(view) {
    const tools = document.getElementById("map-tools");
    const acts = { in: () => view.zoom(1.5), out: () => view.zoom(1 / 1.5), all: () => whole(view) };
    tools.hidden = false;
    tools.addEventListener("click", (event) => acts[event.target.dataset.zoom]?.());
  }

  function followWindow(view) {
    new ResizeObserver(() => {
      const depth = view.depth;
      view.measure();
      view.scale = view.least * depth;
      view.later();
    }).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", view.later);
    const theme = { attributes: true, attributeFilter: ["data-theme"] };
    new MutationObserver(view.later).observe(document.documentElement, theme);
  }

  async function start() {
    // Until all points are here, and where they do not come, the server's drawing stands.
    const answer = await fetch(box.dataset.map);
    if (!answer.ok) return;
    const points = new Points(await answer.json());
    box.querySelector("svg").remove();
    canvas.hidden = false;
    document.getElementById("map-keys").hidden = false;
    const view = new View(points);
    followPointers(view);
    followKeys(view);
    followButtons(view);
    followWindow(view);
    view.draw();
  }

  if (box && context) start();
}
