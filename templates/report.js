"use strict";
// All videos are tiles of one clip, which is drawn on a canvas for each of them. So they are always in step.

const find = (id) => document.getElementById(id);
const data = JSON.parse(find("data").textContent);
const clip = find("clip");
const last = data.first + data.count - 1;
const chosen = { left: data.wiped[0], right: data.wiped[1] };
let shown = data.first;

function load() {
  const bytes = Uint8Array.from(atob(find("bytes").textContent), (character) => character.charCodeAt(0));
  clip.src = URL.createObjectURL(new Blob([bytes], { type: "video/mp4" }));
}

function fail(reason) {
  find("failure").textContent = `The clip cannot be played: ${reason}`;
  find("failure").hidden = false;
}

// --- frames --------------------------------------------------------------------------------------

function seek(frame) {
  const wanted = Math.min(Math.max(Math.round(frame), 0), data.frames - 1);
  const nearest = Math.min(Math.max(wanted, data.first), last);
  find("status").textContent =
    wanted === nearest ? "" : `Frame ${wanted} is not in the clip, which has frames ${data.first} to ${last}.`;
  clip.currentTime = (nearest - data.first + 0.5) / data.fps; // the middle of the frame
  show(nearest);
}

function show(frame) {
  shown = frame;
  find("frame").value = frame;
  find("frame").setAttribute("aria-valuetext", `frame ${frame}`);
  find("number").textContent = `frame ${frame}`;
  panels.forEach((panel) => panel.show(frame));
}

function toggle() {
  if (clip.paused) clip.play().catch((error) => fail(error.message));
  else clip.pause();
}

function tick() {
  if (clip.paused) return;
  if (!clip.seeking) show(Math.min(data.first + Math.floor(clip.currentTime * data.fps), last));
  draw();
  requestAnimationFrame(tick);
}

// --- pictures ------------------------------------------------------------------------------------

const wipe = find("wipe");
const tiles = [...document.querySelectorAll(".tile")];
for (const part of [wipe.parentElement, find("position")]) {
  part.style.maxWidth = `min(60rem, ${(75 * data.width) / data.height}vh)`; // a tall video fits the window
}
for (const canvas of [wipe, ...tiles]) [canvas.width, canvas.height] = [data.width, data.height];

function paint(canvas, video, from, to) {
  if (to <= from) return;
  const x = (video % data.columns) * data.width + from;
  const y = Math.floor(video / data.columns) * data.height;
  const area = [to - from, data.height];
  canvas.getContext("2d").drawImage(clip, x, y, ...area, from, 0, ...area);
}

function draw() {
  if (clip.readyState < HTMLMediaElement.HAVE_CURRENT_DATA) return;
  tiles.forEach((canvas, video) => paint(canvas, video, 0, data.width));
  const seam = Math.round((data.width * find("position").value) / 100);
  paint(wipe, chosen.left, 0, seam);
  paint(wipe, chosen.right, seam, data.width);
  const context = wipe.getContext("2d");
  context.fillStyle = "#fff";
  if (seam > 0 && seam < data.width) context.fillRect(seam - 1, 0, 1, data.height);
}

function name() {
  const [left, right] = [data.videos[chosen.left], data.videos[chosen.right]];
  const share = Math.round(find("position").value);
  find("left-name").textContent = left;
  find("right-name").textContent = right;
  find("position").setAttribute("aria-valuetext", `${share} % ${left}, ${100 - share} % ${right}`);
  wipe.setAttribute("aria-label", `${left} on the left, ${right} on the right`);
}

function move(value) {
  find("position").value = value;
  name();
  draw();
}

// --- curves --------------------------------------------------------------------------------------

const WIDTH = 1000;
const HEIGHT = 100;
const MARGIN = 6;

function element(kind, className = "", text = "") {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

function shape(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  Object.entries(attributes).forEach(([name, value]) => made.setAttribute(name, value));
  return made;
}

const across = (frame) => (WIDTH * frame) / Math.max(1, data.frames - 1);
const written = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(3))));

function path(line, down) {
  let begun = false;
  return line.values
    .map((value, index) => {
      const command = begun ? "L" : "M";
      begun = value !== null;
      return begun ? `${command}${across(index * line.step).toFixed(1)},${down(value).toFixed(1)}` : "";
    })
    .join("");
}

function plot(lines, fromZero) {
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const least = Math.min(...known, ...(fromZero ? [0] : []));
  const most = Math.max(...known);
  const down = (value) => HEIGHT - MARGIN - ((HEIGHT - 2 * MARGIN) * (value - least)) / (most - least || 1);
  const picture = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": true });
  if (data.count < data.frames) {
    picture.append(shape("rect", { x: across(data.first), y: 0, width: across(data.count - 1), height: HEIGHT }));
  }
  const paths = lines.map((line, series) => shape("path", { class: `series-${series}`, d: path(line, down) }));
  picture.append(...paths.reverse()); // the first is drawn over the others
  const cursor = shape("line", { y1: 0, y2: HEIGHT });
  picture.append(cursor);
  const area = element("div", "plot");
  area.append(picture);
  if (known.length) area.append(element("span", "bound top", written(most)), element("span", "bound bottom", written(least)));
  return { area, cursor };
}

function panel({ measure, lines, fromZero }) {
  const figure = element("figure", "panel");
  const caption = element("figcaption");
  const keys = lines.map((line, series) => element("span", `key series-${series}`));
  const { area, cursor } = plot(lines, fromZero);
  caption.append(element("b", "", measure), ...keys);
  figure.append(caption, area);
  const attributes = { role: "slider", tabindex: 0, "aria-label": `${measure}, by frame`, "aria-valuemin": 0 };
  Object.entries({ ...attributes, "aria-valuemax": data.frames - 1 }).forEach(([key, value]) => area.setAttribute(key, value));
  dragged(area, (share) => seek(share * (data.frames - 1)));
  find("panels").append(figure);

  function showFrame(frame) {
    const texts = lines.map((line) => `${line.label} ${written(line.values[Math.floor(frame / line.step)])}`);
    texts.forEach((text, series) => (keys[series].textContent = text));
    for (const end of ["x1", "x2"]) cursor.setAttribute(end, across(frame));
    area.setAttribute("aria-valuenow", frame);
    area.setAttribute("aria-valuetext", `frame ${frame}: ${texts.join(", ")}`);
  }
  return { show: showFrame };
}

// --- input ---------------------------------------------------------------------------------------

// Calls `moved` with the place of the pointer, 0 to 1 from left to right, while it is pressed.
function dragged(area, moved) {
  const follow = (event) => {
    const box = area.getBoundingClientRect();
    moved(Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1));
  };
  area.addEventListener("pointerdown", (event) => {
    area.setPointerCapture(event.pointerId);
    follow(event);
  });
  area.addEventListener("pointermove", (event) => {
    if (area.hasPointerCapture(event.pointerId)) follow(event);
  });
}

const STEPS = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 };

function press(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("input, select, button, summary")) return;
  const onPlot = event.target.closest("[role=slider]") !== null;
  const scrolls = ["ArrowUp", "ArrowDown", "PageUp", "PageDown", "Home", "End"].includes(event.key);
  if (scrolls && !onPlot) return;
  if (event.key === " ") toggle();
  else if (event.key === "Home") seek(0);
  else if (event.key === "End") seek(data.frames - 1);
  else if (event.key in STEPS) seek(shown + STEPS[event.key]);
  else return;
  event.preventDefault();
}

function connect() {
  [find("frame").min, find("frame").max] = [data.first, last];
  find("frame").addEventListener("input", (event) => seek(Number(event.target.value)));
  find("play").addEventListener("click", toggle);
  find("previous").addEventListener("click", () => seek(shown - 1));
  find("next").addEventListener("click", () => seek(shown + 1));
  find("speed").addEventListener("change", (event) => (clip.playbackRate = Number(event.target.value)));
  find("position").addEventListener("input", (event) => move(event.target.value));
  dragged(document.querySelector(".screen"), (share) => move(100 * share));
  for (const side of ["left", "right"]) {
    find(side).value = chosen[side];
    find(side).addEventListener("change", (event) => {
      chosen[side] = Number(event.target.value);
      move(find("position").value);
    });
  }
  document.addEventListener("keydown", press);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-frame]");
    if (button === null) return;
    seek(Number(button.dataset.frame));
    find("compare").scrollIntoView();
  });
  clip.addEventListener("loadeddata", draw);
  clip.addEventListener("seeked", draw);
  clip.addEventListener("play", () => {
    find("play").textContent = "Pause";
    tick();
  });
  clip.addEventListener("pause", () => {
    find("play").textContent = "Play";
    seek(shown); // what is shown is the frame whose number is shown
  });
  clip.addEventListener("error", () => fail("this browser does not decode H.264 video."));
}

const panels = data.panels.map(panel);
connect();
name();
load();
seek(data.first);
