// Comfort for the pages; each of them works without it.
"use strict";

const $ = (selector, root = document) => root.querySelector(selector);
const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];

function kept(name, value) {
  // A browser that keeps nothing throws; then nothing is kept.
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch { /* as said */ }
  return null;
}

function say(text, { trouble = false } = {}) {
  // Read aloud; trouble is shown as well.
  const said = $("#said");
  said.textContent = text;
  said.className = trouble ? "toast" : "unseen";
}

// Light and dark

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function startTheme() {
  const button = $("#theme-button");
  const label = () => button.setAttribute("aria-label", isDark() ? "Go light" : "Go dark");
  button.hidden = false;
  label();
  button.addEventListener("click", () => {
    const theme = isDark() ? "light" : "dark";
    document.documentElement.dataset.theme = theme;
    kept("theme", theme);
    label();
  });
}

// Rows of one height with nothing cut off: each tile is told the shape of its picture.

const SHAPES = [0.6, 3];

function shape(img) {
  const tile = img.closest(".tile");
  if (!tile || !img.naturalWidth) return;
  const ratio = Math.min(Math.max(img.naturalWidth / img.naturalHeight, SHAPES[0]), SHAPES[1]);
  tile.style.setProperty("--shape", ratio.toFixed(4));
  tile.classList.add("shaped");
}

function startGrids() {
  document.addEventListener("load", (event) => {
    if (event.target.matches?.(".tile img")) shape(event.target);
  }, true);
  $$(".tile img").filter((img) => img.complete).forEach(shape);
}

// A picture that is dropped, pasted or chosen

const PREVIEW = "sent picture";
const PREVIEW_MS = 400;

async function preview(file) {
  // Shown on the next page; it never leaves this tab.
  try {
    const bitmap = await createImageBitmap(file);
    const scale = 96 / Math.min(bitmap.width, bitmap.height);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 96;
    const [w, h] = [bitmap.width * scale, bitmap.height * scale];
    canvas.getContext("2d").drawImage(bitmap, (96 - w) / 2, (96 - h) / 2, w, h);
    sessionStorage.setItem(PREVIEW, canvas.toDataURL("image/jpeg", 0.8));
  } catch {
    sessionStorage.removeItem(PREVIEW);
  }
}

async function send(file) {
  const form = $("#ask");
  if (!form) {
    say("Go to the search page to search by a picture.", { trouble: true });
    return;
  }
  const input = $("input[type=file]", form);
  if (!input.files.length || input.files[0] !== file) {
    const carrier = new DataTransfer();
    carrier.items.add(file);
    input.files = carrier.files;
  }
  document.body.classList.add("busy");
  say("Searching");
  await Promise.race([preview(file), new Promise((done) => setTimeout(done, PREVIEW_MS))]);
  form.submit();
}

function pictureIn(data) {
  return [...data.files].find((file) => file.type.startsWith("image/") || !file.type);
}

function imageIn(data) {
  // A tile that was dragged from a grid of ours, or of another window.
  const text = data.getData("text/uri-list") || data.getData("text/plain");
  const found = /^[^#]*\/(?:images|api\/thumbnails)\/(\d+)|[?&]image=(\d+)/.exec(text);
  return found && text.startsWith(location.origin) ? found[1] ?? found[2] : null;
}

function startSending() {
  const input = $("#ask input[type=file]");
  if (input) input.addEventListener("change", () => input.files.length && send(input.files[0]));
  const hint = $("#drop-hint");
  if (hint) hint.hidden = false;
}

function startDropping() {
  let depth = 0;
  const takes = (event) => $("#ask") && /Files|text\/uri-list/.test([...event.dataTransfer.types]);
  const leave = () => {
    depth = 0;
    document.body.classList.remove("dropping");
  };
  addEventListener("dragenter", (event) => {
    if (!takes(event)) return;
    depth += 1;
    document.body.classList.add("dropping");
  });
  addEventListener("dragleave", () => {
    depth -= 1;
    if (depth <= 0) leave();
  });
  addEventListener("dragover", (event) => {
    if (takes(event)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    if (!takes(event)) return;
    event.preventDefault();
    leave();
    const file = pictureIn(event.dataTransfer);
    const image = imageIn(event.dataTransfer);
    if (file) send(file);
    else if (image) location.assign(`/search?image=${image}`);
    else say("That is no picture: drop the file of one.", { trouble: true });
  });
  addEventListener("dragend", leave);
  addEventListener("paste", (event) => {
    const file = pictureIn(event.clipboardData);
    if (!file || !$("#ask")) return;
    event.preventDefault();
    send(file);
  });
}

// Parts of a page, fetched

async function fetched(url, body) {
  const options = body ? { method: "POST", body } : {};
  const answer = await fetch(url, { ...options, headers: { Accept: "text/html" } });
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (!$("main", page)) throw new Error("no page");
  return page;
}

function ask(control) {
  // What a link or a button of the question's form would open.
  if (control.matches("a")) return fetched(control.href);
  const body = new FormData(control.form);
  body.append(control.name, control.value);
  return fetched(control.form.action, body);
}

let renewals = 0;

async function renew(asked, url, fallback) {
  // Puts what is fetched in the place of what is shown; the last one to be asked for wins.
  const mine = (renewals += 1);
  document.body.classList.add("busy");
  try {
    const page = await asked;
    if (mine !== renewals) return;
    const focused = document.activeElement?.id;
    $("main").replaceWith($("main", page));
    document.title = page.title;
    if (url) history.pushState(null, "", url);
    startPage();
    const again = focused && document.getElementById(focused);
    (again || $("main")).focus({ preventScroll: true });
    say($(".note", $("main"))?.textContent ?? $("h1").textContent);
  } catch {
    fallback();
  } finally {
    if (mine === renewals) document.body.classList.remove("busy");
  }
}

function startRenewing() {
  document.addEventListener("click", (event) => {
    const control = event.target.closest(".act, .drop");
    const plain = !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
    if (!control || !plain || event.button) return;
    if (control.matches("a") && new URL(control.href).pathname !== "/search") return;
    event.preventDefault();
    scrollTo({ top: 0 });
    if (control.matches("a")) renew(ask(control), control.href, () => location.assign(control.href));
    else renew(ask(control), null, () => control.form.requestSubmit(control));
  });
  addEventListener("popstate", () => location.reload());
}

// Endless scroll

let watching = null;

function watch() {
  watching?.disconnect();
  const more = $("#more");
  if (!more || !$("#hits")) return;
  watching = new IntersectionObserver((seen) => {
    if (seen.some((one) => one.isIntersecting)) append(more);
  }, { rootMargin: "800px" });
  watching.observe(more);
  more.addEventListener("click", (event) => {
    event.preventDefault();
    append(more);
  });
}

async function append(more) {
  if (more.dataset.asked) return;
  more.dataset.asked = "yes";
  watching.disconnect();
  const grid = $("#hits");
  const label = more.textContent;
  more.textContent = "Searching …";
  try {
    const page = await ask(more);
    const there = new Set($$(".tile", grid).map((tile) => tile.dataset.image));
    const tiles = $$("#hits > .tile", page).filter((tile) => !there.has(tile.dataset.image));
    if (!$("#hits", page) && $(".note.bad", page)) throw new Error("refused");
    if (!grid.isConnected) return;
    grid.append(...tiles.map((tile) => document.adoptNode(tile)));
    say(`${tiles.length} more pictures`);
    const next = $("#more", page);
    if (next) more.replaceWith(document.adoptNode(next));
    else more.remove();
    watch();
  } catch {
    delete more.dataset.asked;
    more.textContent = label;
    say("That did not work; press More to try again.", { trouble: true });
  }
}

// Filters are applied as soon as they are changed

function startFilters() {
  const form = $("#question");
  if (!form) return;
  $("#apply", form).hidden = true;
  form.addEventListener("formdata", (event) => {
    for (const [name, value] of [...event.formData]) if (!value) event.formData.delete(name);
  });
  form.addEventListener("change", () => {
    if (!form.reportValidity()) return;
    const data = new FormData(form);
    if (form.method === "post") {
      renew(fetched(form.action, data), null, () => form.submit());
    } else {
      const url = `${form.action}?${new URLSearchParams(data)}`;
      renew(fetched(url), url, () => form.submit());
    }
  });
}

function startSent() {
  const chip = $("#sent");
  let url = null;
  try {
    url = sessionStorage.getItem(PREVIEW);
  } catch { /* a browser that keeps nothing shows nothing */ }
  if (!chip || !url || !url.startsWith("data:image/jpeg")) return;
  const img = new Image();
  img.src = url;
  img.alt = "";
  $(".label", chip).before(img);
}

// Keys

const STEPS = { ArrowLeft: -1, ArrowRight: 1 };
const SIGNS = { "+": "plus", "=": "plus", "-": "minus", "−": "minus" };

function typing(target) {
  return target.closest?.("input:not([type=checkbox]), textarea, select, dialog");
}

function below(views, from, direction) {
  // The nearest picture of the next row.
  const box = from.getBoundingClientRect();
  const middle = box.left + box.width / 2;
  const rows = views.map((view) => [view, view.getBoundingClientRect()])
    .filter(([, at]) => (at.top - box.top) * direction > box.height / 3);
  if (!rows.length) return null;
  const top = Math.min(...rows.map(([, at]) => at.top * direction));
  const row = rows.filter(([, at]) => at.top * direction < top + box.height / 3);
  const off = ([, at]) => Math.abs(at.left + at.width / 2 - middle);
  return row.reduce((best, one) => (off(one) < off(best) ? one : best))[0];
}

function move(event) {
  const views = $$(".tile .view, .tile > a:first-child").filter((v, i, all) => all.indexOf(v) === i);
  if (!views.length) return;
  const tile = document.activeElement.closest(".tile");
  const from = tile && $("a", tile);
  let to = views[0];
  if (from) {
    const step = STEPS[event.key];
    to = step ? views[views.indexOf(from) + step] : below(views, from, event.key === "ArrowDown" ? 1 : -1);
  } else if (event.key === "ArrowUp" || event.key === "ArrowLeft") {
    return;
  }
  if (!to) return;
  event.preventDefault();
  to.focus({ preventScroll: true });
  to.scrollIntoView({ block: "nearest" });
}

function press(event) {
  const tile = document.activeElement.closest(".tile");
  if (event.key in SIGNS && tile) return $(`.act[data-act=${SIGNS[event.key]}]`, tile);
  if (event.key === "i" && tile) return $(".name", tile);
  if (event.key === "?") return $("#keys-button");
  return null;
}

function startKeys() {
  const dialog = $("#keys");
  const box = $("#keys-on");
  const button = $("#keys-button");
  box.checked = kept("keys") !== "off";
  box.addEventListener("change", () => kept("keys", box.checked ? "on" : "off"));
  button.hidden = false;
  button.addEventListener("click", () => dialog.showModal());
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    if (event.key.startsWith("Arrow")) {
      if (!event.shiftKey) move(event);
      return;
    }
    if (!box.checked) return;
    if (event.key === "/") {
      const target = $("#text:enabled") ?? $("#ask input[type=file]");
      if (target) event.preventDefault();
      target?.focus();
      target?.select?.();
      return;
    }
    const pressed = press(event);
    if (pressed) {
      event.preventDefault();
      pressed.click();
    }
  });
}

// A page, or what came in its place

function startPage() {
  $$(".tile img").filter((img) => img.complete).forEach(shape);
  startSending();
  startFilters();
  startSent();
  watch();
}

addEventListener("pageshow", () => document.body.classList.remove("busy"));
startTheme();
startGrids();
startDropping();
startRenewing();
startKeys();
startPage();
