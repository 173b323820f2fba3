// The page of `smart-iqa serve`: images in, scores shown. Names of files come from outside: they are only ever text.

const AT_ONCE = 4, TRIES = 20, THUMB = 480;
const MOST_ALPHA = 0.9;
const FORMULA = /^(?![-+][\d.e\s±%[\],+-]*$)[=+\-@\t\r]/; // what a spreadsheet would run
const $ = (id) => document.getElementById(id);

let model = { limits: { max_file_mb: Infinity }, has_stage_weights: true };
let entries = []; // {file, name, number, url, card, state: "waiting" | "scored" | "failed", row, error, map}
let added = 0, pasted = 0, running = 0, shown = null, said = "";

// -- Small helpers ----------------------------------------------------------------------------------------------

function element(tag, className = "", text = "", attributes = {}) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const fixed = (value) => value.toFixed(1);
const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const wait = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const bytes = (n) => (n < 1e6 ? `${Math.max(1, Math.round(n / 1e3))} kB` : `${(n / 1e6).toFixed(1)} MB`);

function styleLevel(target, level) {
  if (level) target.style.setProperty("--of-level", `var(--${level.toLowerCase().replace(" ", "-")})`);
}

// -- Asking the server ------------------------------------------------------------------------------------------

async function ask(entry, withMap) {
  const query = new URLSearchParams({ name: entry.name, map: withMap, errors_in_rows: true });
  for (let tries = 1; ; tries++) {
    const answer = await fetch(`/api/score?${query}`, {
      method: "POST", body: entry.file, headers: { "Content-Type": "application/octet-stream" },
    });
    const content = await answer.json(), row = content.results?.[0];
    if ((row?.status ?? answer.status) === 503 && tries < TRIES) {
      await wait(Number(answer.headers.get("Retry-After")) || 1);
      continue;
    }
    if (!row || row.error) throw new Error(row?.error ?? content.error);
    return row;
  }
}

async function score(entry) {
  try {
    if (entry.file.size > model.limits.max_file_mb * 1e6)
      throw new Error(`the file is larger than ${model.limits.max_file_mb} MB, the most that is taken; save it smaller`);
    entry.row = await ask(entry, false);
    entry.state = "scored";
    said = `${entry.name}: ${fixed(entry.row.score)}${entry.row.level ? `, ${entry.row.level}` : ""}.`;
  } catch (error) {
    entry.state = "failed";
    const lost = error instanceof TypeError; // of fetch: no answer, or a file that cannot be read
    entry.error = lost ? "no answer: is the server running, and the file still there?" : error.message;
    said = `${entry.name} was not scored: ${entry.error}.`;
  }
}

async function work() {
  while (running < AT_ONCE) {
    const entry = entries.find((each) => each.state === "waiting" && !each.asked);
    if (!entry) return;
    entry.asked = true;
    running++;
    score(entry).then(() => {
      running--;
      fillCard(entry);
      if ($("order").value !== "added") arrange();
      report();
      work();
    });
  }
}

function report() {
  const done = entries.filter((each) => each.state !== "waiting").length;
  const failed = entries.filter((each) => each.state === "failed").length;
  const all = entries.length;
  const progress = done < all ? `${done} of ${count(all, "image")} done.` : `${count(all - failed, "image")} scored` +
    (failed ? `, ${failed} not.` : ".");
  $("status").textContent = all ? `${progress} ${said}` : said;
  $("download").disabled = done === 0;
}

// -- Adding and removing ----------------------------------------------------------------------------------------

function add(files) {
  for (const file of files) {
    const entry = { file, name: file.name, number: added++, url: URL.createObjectURL(file), state: "waiting" };
    entry.card = makeCard(entry);
    entries.push(entry);
    $("cards").append(entry.card);
    thumbnail(entry);
  }
  const some = entries.length > 0;
  document.body.classList.toggle("started", some);
  $("results").hidden = !some;
  report();
  work();
}

function remove(entry) {
  const next = entry.card.nextElementSibling ?? entry.card.previousElementSibling;
  const wasFocused = entry.card.contains(document.activeElement);
  URL.revokeObjectURL(entry.url);
  entry.card.remove();
  entries = entries.filter((each) => each !== entry);
  said = `${entry.name} removed.`;
  if (wasFocused) (next?.querySelector(".remove") ?? $("files")).focus();
  picked();
  add([]);
}

function makeCard(entry) {
  const card = $("card").content.cloneNode(true).firstElementChild;
  card.querySelector(".name").textContent = card.querySelector(".name").title = entry.name;
  card.querySelector(".open").addEventListener("click", () => showDetail(entry));
  card.querySelector(".remove").setAttribute("aria-label", `Remove ${entry.name}`);
  card.querySelector(".remove").addEventListener("click", () => remove(entry));
  const box = card.querySelector(".pick input");
  box.setAttribute("aria-label", `Compare ${entry.name}`);
  box.addEventListener("change", () => pick(entry, box));
  entry.card = card;
  fillCard(entry);
  return card;
}

async function thumbnail(entry) {
  const place = entry.card.querySelector(".thumb");
  try {
    const bitmap = await createImageBitmap(entry.file);
    const scale = Math.min(1, THUMB / Math.max(bitmap.width, bitmap.height));
    const canvas = element("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    place.replaceChildren(canvas);
  } catch {
    place.textContent = "no preview";
  }
}

// -- Showing ----------------------------------------------------------------------------------------------------

function scoreLine(row) {
  const line = element("p", "score");
  line.append(element("strong", "", fixed(row.score)));
  if (row.level) {
    const level = element("span", "level", row.level);
    styleLevel(level, row.level);
    line.append(level);
  }
  return line;
}

function scale(row) {
  const has = row.low !== undefined;
  const text = `${fixed(row.score)} on a scale of 0 to 100` + (has ? `, likely ${fixed(row.low)} to ${fixed(row.high)}` : "");
  const bar = element("div", "scale", "", { role: "img", "aria-label": text });
  styleLevel(bar, row.level);
  bar.style.setProperty("--at", `${row.score}%`);
  if (has) {
    bar.style.setProperty("--from", `${row.low}%`);
    bar.style.setProperty("--to", `${row.high}%`);
    bar.append(element("i"));
  }
  bar.append(element("b"));
  return bar;
}

function interval(row) {
  const line = element("div", "ends");
  line.append(element("span", "", row.low === undefined ? "" : `likely ${fixed(row.low)} to ${fixed(row.high)}`));
  return line;
}

function fillCard(entry) {
  const { card, row, state } = entry;
  const parts = {
    waiting: () => [element("p", "quiet", "scoring…")],
    failed: () => [element("p", "problem small", entry.error)],
    scored: () => [scoreLine(row), scale(row), interval(row)],
  }[state]();
  card.querySelector(".result").replaceChildren(...parts);
  card.querySelector(".pick").hidden = state !== "scored";
  card.querySelector(".open").disabled = state !== "scored";
  const is = state === "scored" ? `score ${fixed(row.score)}` : state === "failed" ? "not scored" : "being scored";
  card.querySelector(".open").setAttribute("aria-label", `${entry.name}, ${is}: show`);
}

const ORDERS = {
  added: (a, b) => a.number - b.number,
  best: (a, b) => (b.row?.score ?? -1) - (a.row?.score ?? -1) || a.number - b.number,
  worst: (a, b) => (a.row?.score ?? 101) - (b.row?.score ?? 101) || a.number - b.number,
  name: (a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }) || a.number - b.number,
};

function arrange() {
  const focused = document.activeElement;
  entries.sort(ORDERS[$("order").value]);
  $("cards").append(...entries.map((entry) => entry.card));
  if (focused !== document.activeElement) focused.focus({ preventScroll: true });
}

// -- One image --------------------------------------------------------------------------------------------------

function picture(entry) {
  const frame = element("div", "picture");
  const image = element("img", "", "", { alt: entry.name, src: entry.url });
  image.addEventListener("error", () => {
    const none = element("div", "none", "This browser shows no preview of this format.");
    none.style.aspectRatio = `${entry.row.width} / ${entry.row.height}`;
    image.replaceWith(none);
  });
  frame.append(image);
  return frame;
}

function mapControls(pairs) {
  const controls = $("map-controls").content.cloneNode(true).firstElementChild;
  const box = controls.querySelector(".map-on"), strength = controls.querySelector("[type=range]");
  const note = controls.querySelector(".map-note"), legend = controls.querySelector(".legend");
  const show = async () => {
    strength.disabled = !box.checked;
    legend.hidden = true;
    note.textContent = box.checked && pairs.some(([entry]) => !entry.map) ? "computing the map…" : "";
    try {
      if (box.checked) await Promise.all(pairs.map(async ([entry]) => (entry.map ??= (await ask(entry, true)).map)));
      note.textContent = "";
    } catch (error) {
      note.textContent = `no map: ${error.message}`;
      return;
    }
    const limit = Math.max(...pairs.flatMap(([entry]) => (entry.map ?? [[0]]).flat().map(Math.abs)), 1e-6);
    legend.hidden = !box.checked;
    legend.querySelector(".lowers").textContent = `lowers the score (\u2212${fixed(limit)} points)`;
    legend.querySelector(".raises").textContent = `raises it (+${fixed(limit)})`;
    for (const [entry, frame] of pairs) drawMap(frame, box.checked ? entry.map : null, limit, Number(strength.value));
  };
  box.addEventListener("change", show);
  strength.addEventListener("input", show);
  strength.disabled = true;
  return controls;
}

// The colour that a custom property has now, as red, green and blue.
function colourOf(name) {
  const probe = element("span");
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const parts = getComputedStyle(probe).color.match(/[\d.]+/g).slice(0, 3).map(Number);
  probe.remove();
  return parts;
}

function drawMap(frame, map, limit, strength) {
  frame.querySelector("canvas")?.remove();
  frame.classList.toggle("mapped", map !== null);
  if (map === null) return;
  const canvas = element("canvas", "", "", { "aria-hidden": "true" });
  canvas.height = map.length;
  canvas.width = map[0].length;
  const context = canvas.getContext("2d"), pixels = context.createImageData(canvas.width, canvas.height);
  const colours = [colourOf("--lowers"), colourOf("--raises")];
  map.flat().forEach((value, i) => {
    const alpha = MOST_ALPHA * strength * Math.abs(value) / limit;
    pixels.data.set([...colours[Number(value > 0)], Math.round(255 * alpha)], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
  frame.append(canvas);
}

function weights(row) {
  const list = element("div", "weights");
  const names = ["fine", "", "", "coarse"];
  row.stage_weights.forEach((weight, stage) => {
    const track = element("div", "track", "", { "aria-hidden": "true" });
    track.append(element("i"));
    track.style.setProperty("--share", `${100 * weight}%`);
    list.append(element("span", "", `Stage ${stage}${names[stage] ? ` (${names[stage]})` : ""}`), track);
    list.append(element("span", "", weight.toFixed(3)));
  });
  return list;
}

function facts(entry) {
  const { row, file } = entry, list = element("dl", "facts");
  const known = { Size: `${row.width} × ${row.height} pixels`, File: `${bytes(file.size)}${file.type ? `, ${file.type}` : ""}` };
  for (const [key, value] of Object.entries(known)) list.append(element("dt", "", key), element("dd", "", value));
  return list;
}

function explain(entry) {
  const { row } = entry, parts = [scoreLine(row), scale(row)];
  const ends = element("div", "ends");
  ends.append(element("span", "", "0"), element("span", "", "100"));
  parts.push(ends);
  if (row.low !== undefined) {
    const share = Math.round(100 * model.coverage);
    parts.push(element("p", "", `Likely ${fixed(row.low)} to ${fixed(row.high)}: for ${share} of 100 images the interval holds what people say.`));
  }
  if (row.stage_weights) parts.push(element("h3", "", "Weight of each stage"), weights(row));
  parts.push(element("h3", "", "Image"), facts(entry));
  return parts;
}

function showDetail(entry) {
  shown = entry;
  const frame = picture(entry), dialog = $("detail"), on = dialog.querySelector(".map-on")?.checked;
  const controls = mapControls([[entry, frame]]);
  $("detail-title").textContent = entry.name;
  dialog.querySelector(".view").replaceChildren(frame, controls);
  dialog.querySelector(".said").replaceChildren(...explain(entry));
  const scored = entries.filter((each) => each.state === "scored"), focused = document.activeElement;
  $("before").disabled = entry === scored[0];
  $("after").disabled = entry === scored.at(-1);
  if (focused.disabled) dialog.querySelector(".close").focus(); // else the keyboard would start over
  if (!dialog.open) dialog.showModal();
  else if (on) controls.querySelector(".map-on").click();
}

function step(by) {
  const scored = entries.filter((each) => each.state === "scored");
  const next = scored[scored.indexOf(shown) + by];
  if (next) showDetail(next);
}

// -- Two images -------------------------------------------------------------------------------------------------

let chosen = []; // at most two

function pick(entry, box) {
  chosen = chosen.filter((each) => each !== entry);
  if (box.checked) chosen.push(entry);
  while (chosen.length > 2) chosen.shift().card.querySelector(".pick input").checked = false;
  picked();
}

function picked() {
  chosen = chosen.filter((each) => entries.includes(each));
  $("compare").disabled = chosen.length !== 2;
  $("compare").textContent = chosen.length === 1 ? "Compare: pick one more" : "Compare two";
}

function verdict([a, b]) {
  const [better, other] = a.row.score >= b.row.score ? [a, b] : [b, a];
  const gap = better.row.score - other.row.score;
  if (gap < 0.05) return "Both have the same score.";
  const overlap = better.row.low !== undefined && better.row.low <= other.row.high;
  return `${better.name} scores ${fixed(gap)} higher than ${other.name}` +
    (overlap ? "; their intervals overlap, so the order is likely but not sure." : ".");
}

function comparePicked() {
  const frames = chosen.map(picture);
  const columns = chosen.map((entry, i) => {
    const column = element("div");
    column.append(frames[i], element("p", "name", entry.name), scoreLine(entry.row), scale(entry.row), interval(entry.row));
    if (entry.row.stage_weights) column.append(weights(entry.row));
    return column;
  });
  $("verdict").textContent = verdict(chosen);
  $("pair").querySelector(".map-controls")?.remove();
  $("pair").querySelector(".two").replaceChildren(...columns);
  $("verdict").after(mapControls(chosen.map((entry, i) => [entry, frames[i]])));
  $("pair").showModal();
}

// -- CSV --------------------------------------------------------------------------------------------------------

function cell(value) {
  let text = value === undefined || value === null ? "" : String(value);
  if (typeof value === "string" && FORMULA.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const stages = model.has_stage_weights ? [0, 1, 2, 3] : [];
  const head = ["image", "score", "low", "high", "level", "error", ...stages.map((i) => `stage_${i}`)];
  const rows = entries.filter((each) => each.state !== "waiting").map(({ name, row = {}, error }) =>
    [name, row.score, row.low, row.high, row.level, error, ...stages.map((i) => row.stage_weights?.[i])]);
  return [head, ...rows].map((row) => row.map(cell).join(",") + "\n").join("");
}

function download() {
  const link = element("a", "", "", { download: "scores.csv" });
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  said = "scores.csv is downloaded.";
  report();
}

// -- Start ------------------------------------------------------------------------------------------------------

function listenForFiles() {
  $("files").addEventListener("change", () => {
    add($("files").files);
    $("files").value = "";
  });
  addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].map((file) => {
      const ending = file.type.split("/")[1]?.split("+")[0] ?? "png";
      return file.name === "image.png" ? new File([file], `pasted-${++pasted}.${ending}`, { type: file.type }) : file;
    });
    if (files.length) add(files);
    else said = "Nothing that was pasted is a file.", report();
  });
  addEventListener("dragover", (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
  addEventListener("dragleave", (event) => event.relatedTarget ?? $("drop").classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    add(event.dataTransfer.files);
  });
}

function listenForTheme() {
  const themes = ["auto", "light", "dark"];
  const set = (theme) => {
    document.documentElement.dataset.theme = theme;
    $("theme").textContent = `Theme: ${theme}`;
  };
  set(themes.includes(localStorage.theme) ? localStorage.theme : "auto");
  $("theme").addEventListener("click", () => {
    localStorage.theme = themes[(themes.indexOf(document.documentElement.dataset.theme) + 1) % 3];
    set(localStorage.theme);
  });
}

function listenForButtons() {
  $("order").addEventListener("change", arrange);
  $("compare").addEventListener("click", comparePicked);
  $("download").addEventListener("click", download);
  $("clear").addEventListener("click", () => {
    for (const entry of [...entries]) remove(entry);
    said = "All images removed.";
    report();
    $("files").focus();
  });
  $("before").addEventListener("click", () => step(-1));
  $("after").addEventListener("click", () => step(1));
  addEventListener("keydown", (event) => {
    if (!$("detail").open || event.target.matches("input") || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    step(event.key === "ArrowLeft" ? -1 : 1);
  });
  for (const button of document.querySelectorAll("dialog .close"))
    button.addEventListener("click", () => button.closest("dialog").close());
}

async function describe() {
  const answer = await fetch("/api/model");
  if (!answer.ok) return;
  model = await answer.json();
  const { max_file_mb: size, max_megapixels: pixels } = model.limits;
  $("model").textContent = `Image quality, 0 to 100 · ${model.checkpoint} (${model.backbone})`;
  $("drop-note").textContent = `They are scored in memory and not kept. Up to ${size} MB and ${pixels} megapixels each.`;
}

listenForFiles();
listenForTheme();
listenForButtons();
describe();
