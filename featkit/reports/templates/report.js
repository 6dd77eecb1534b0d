"use strict";

// Tables are sorted by the buttons that stand in their headers; what to sort by is in data-sort, else the text.
function value(row, column) {
  const cell = row.cells[column];
  const given = cell.dataset.sort ?? cell.textContent;
  return given !== "" && !Number.isNaN(Number(given)) ? Number(given) : given;
}

function order(a, b) {
  if (a === b) return 0;
  if (a === "") return 1;
  if (b === "") return -1;
  if (typeof a === typeof b && typeof a === "number") return a - b;
  return String(a).localeCompare(String(b));
}

function sort(table, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  const sign = descending ? -1 : 1;
  const rows = Array.from(table.tBodies[0].rows, (row) => [value(row, header.cellIndex), row]);
  rows.sort(([a], [b]) => (a === "" || b === "" ? order(a, b) : sign * order(a, b)));
  table.tBodies[0].append(...rows.map(([, row]) => row));
  for (const other of header.parentElement.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => sort(table, header));
  }
}

// Of several panels, one is shown: that which the select box names. Without this script all are.
for (const box of document.querySelectorAll(".switch")) {
  const panels = box.parentElement.querySelectorAll("[data-panel]");
  const select = box.querySelector("select");
  const show = () => panels.forEach((panel) => { panel.hidden = panel.dataset.panel !== select.value; });
  select.addEventListener("change", show);
  box.hidden = false;
  show();
}

// The embedding map of a run: a canvas with pan, zoom, a tooltip and a legend that isolates a class.
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a4fbf", "#8c564b", "#7f7f7f", "#17a2a2"];
const SHAPES = ["circle", "square", "triangle", "diamond", "cross"];

function style(index, count) {
  const shape = SHAPES[Math.floor(index / PALETTE.length) % SHAPES.length];
  if (count <= PALETTE.length * SHAPES.length) return { colour: PALETTE[index % PALETTE.length], shape };
  return { colour: `hsl(${Math.round((360 * index * 0.618034) % 360)} 65% 50%)`, shape: SHAPES[index % SHAPES.length] };
}

function trace(path, shape, x, y, r) {
  if (shape === "circle") { path.moveTo(x + r, y); path.arc(x, y, r, 0, 2 * Math.PI); }
  else if (shape === "square") path.rect(x - r, y - r, 2 * r, 2 * r);
  else if (shape === "triangle") { path.moveTo(x, y - r); path.lineTo(x + r, y + r); path.lineTo(x - r, y + r); path.closePath(); }
  else if (shape === "diamond") { path.moveTo(x, y - r); path.lineTo(x + r, y); path.lineTo(x, y + r); path.lineTo(x - r, y); path.closePath(); }
  else { path.rect(x - r, y - r / 3, 2 * r, (2 * r) / 3); path.rect(x - r / 3, y - r, (2 * r) / 3, 2 * r); }
}

function embeddingMap(root) {
  const data = JSON.parse(root.querySelector(".map-data").textContent);
  const canvas = root.querySelector(".stage canvas");
  const tip = root.querySelector(".tip");
  const legend = root.querySelector(".legend");
  const select = root.querySelector(".colour");
  const sprite = data.sprite ? Object.assign(new Image(), { src: data.sprite }) : null;
  let zoom = 1, centre = [500, 500], isolated = null, pixels = [], dragged = null, moved = false;

  function groups() {
    if (select.value === "error") {
      const wrong = data.true.map((label, row) => Number(label !== data.predicted[row]));
      return { of: wrong, names: ["right", "wrong"], styles: [{ colour: "#0072b2", shape: "circle" }, { colour: "#d55e00", shape: "triangle" }] };
    }
    return { of: data[select.value], names: data.classes, styles: data.classes.map((_, index) => style(index, data.classes.length)) };
  }

  function draw() {
    const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    canvas.width = box.width * ratio;
    canvas.height = box.height * ratio;
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const scale = (zoom * Math.min(box.width, box.height)) / 1080;
    const radius = Math.min(8, (data.x.length > 3000 ? 2 : 3.2) * Math.sqrt(zoom));
    const { of, styles } = groups();
    pixels = data.x.map((x, row) => [box.width / 2 + (x - centre[0]) * scale, box.height / 2 - (data.y[row] - centre[1]) * scale]);
    const paths = styles.map(() => new Path2D());
    pixels.forEach(([x, y], row) => trace(paths[of[row]], styles[of[row]].shape, x, y, radius));
    paths.forEach((path, group) => {
      context.globalAlpha = isolated === null || isolated === group ? 0.85 : 0.08;
      context.fillStyle = styles[group].colour;
      context.fill(path);
    });
  }

  function drawLegend() {
    const { of, names, styles } = groups();
    const counts = names.map(() => 0);
    of.forEach((group) => { counts[group] += 1; });
    legend.replaceChildren();
    names.forEach((name, group) => {
      if (!counts[group]) return;
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-pressed", String(isolated === group));
      const shapes = { circle: "M5 0A5 5 0 1 1-5 0A5 5 0 1 1 5 0", square: "M-5-5H5V5H-5Z", triangle: "M0-5L5 5H-5Z", diamond: "M0-6L6 0L0 6L-6 0Z", cross: "M-5-2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z" };
      const mark = document.createElement("template");
      mark.innerHTML = `<svg viewBox="-6 -6 12 12" aria-hidden="true"><path d="${shapes[styles[group].shape]}" fill="${styles[group].colour}"></path></svg>`;
      button.append(mark.content, `${name} (${counts[group]})`);
      button.addEventListener("click", () => { isolated = isolated === group ? null : group; drawLegend(); draw(); });
      const item = document.createElement("li");
      item.append(button);
      legend.append(item);
    });
  }

  function showTip(x, y) {
    const { of } = groups();
    let best = -1, nearest = 144;
    pixels.forEach(([px, py], row) => {
      const distance = (px - x) ** 2 + (py - y) ** 2;
      if (distance < nearest && (isolated === null || of[row] === isolated)) { nearest = distance; best = row; }
    });
    tip.hidden = best < 0;
    if (best < 0) return;
    tip.replaceChildren();
    if (sprite && best < data.pictures) {
      const picture = document.createElement("canvas");
      picture.width = picture.height = data.side;
      const left = (best % data.across) * data.side, top = Math.floor(best / data.across) * data.side;
      picture.getContext("2d").drawImage(sprite, left, top, data.side, data.side, 0, 0, data.side, data.side);
      tip.append(picture);
    }
    const label = data.classes[data.true[best]], predicted = data.classes[data.predicted[best]];
    for (const text of [data.names[best], label === predicted ? label : `${label}, predicted ${predicted}`]) {
      const line = document.createElement("div");
      line.textContent = text;
      tip.append(line);
    }
    const box = canvas.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(x + 12, box.width - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 12, box.height - tip.offsetHeight - 4))}px`;
  }

  function zoomBy(factor) { zoom = Math.min(60, Math.max(1, zoom * factor)); draw(); }
  function move(dx, dy) {
    const box = canvas.getBoundingClientRect(), scale = (zoom * Math.min(box.width, box.height)) / 1080;
    centre = [centre[0] - dx / scale, centre[1] + dy / scale];
    draw();
  }

  select.addEventListener("change", () => { isolated = null; drawLegend(); draw(); });
  root.querySelector(".zoom-in").addEventListener("click", () => zoomBy(1.5));
  root.querySelector(".zoom-out").addEventListener("click", () => zoomBy(1 / 1.5));
  root.querySelector(".reset").addEventListener("click", () => { zoom = 1; centre = [500, 500]; isolated = null; drawLegend(); draw(); });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2); }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { moved = false; dragged = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
  canvas.addEventListener("pointerup", (event) => {
    dragged = null;
    if (!moved) showTip(event.offsetX, event.offsetY); // a tap on a touch screen
  });
  canvas.addEventListener("pointermove", (event) => {
    if (dragged && Math.hypot(event.clientX - dragged[0], event.clientY - dragged[1]) < 3) return;
    if (dragged) { moved = true; move(event.clientX - dragged[0], event.clientY - dragged[1]); dragged = [event.clientX, event.clientY]; tip.hidden = true; }
    else showTip(event.offsetX, event.offsetY);
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [40, 0], ArrowRight: [-40, 0], ArrowUp: [0, 40], ArrowDown: [0, -40] };
    if (event.key in steps) move(...steps[event.key]);
    else if (event.key === "+" || event.key === "=") zoomBy(1.5);
    else if (event.key === "-") zoomBy(1 / 1.5);
    else return;
    const box = canvas.getBoundingClientRect();
    showTip(box.width / 2, box.height / 2);
    event.preventDefault();
  });
  root.hidden = false;
  new ResizeObserver(draw).observe(canvas);
  drawLegend();
  draw();
}

for (const root of document.querySelectorAll(".embedding")) embeddingMap(root);
