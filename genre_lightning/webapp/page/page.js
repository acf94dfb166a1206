// The page's behaviour: calls the API of genre_lightning/webapp/api.py and shows its responses.
// Names and texts come from files and users, so they are only inserted as text, never as markup.
"use strict";

const byId = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 65.99rem)"); // no column for the reasons, as in page.css
const onePerRow = matchMedia("(max-width: 43.99rem)");
const MANY_WORDS = 12; // the most words of a text that are listed
const LONG_WORD = 60; // characters; the text above the list has the whole word

let model = null; // response of /api/model
let answer = null; // response of /api/predict
let answerFiles = {}; // the files that the answer is about, by column
let selectedGenre = null; // name of the genre that is explained
let predictionRequest = null; // AbortController of the running prediction
let heatMapRequest = null; // AbortController of the running heat maps
let modelPromise = null; // promise of the model
const fields = new Map(); // column -> its field
const heatMapUrls = new Map(); // branch and genre -> URL of the heat map

/** An error with a message for people and a code for programs; see webapp/api.py. */
class Problem extends Error {
  constructor(message, code = "") {
    super(message);
    this.code = code;
  }
}

function createElement(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/** A name or word, isolated so that right-to-left script does not reorder the text around it. */
function isolated(text, className = "") {
  return createElement("bdi", className, text);
}

/** Names in a sentence, as nodes to append. */
function listed(names, join = ", ") {
  return names.flatMap((name, index) => [...(index ? [join] : []), isolated(name)]);
}

function cloneTemplate(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

function signed(value) {
  const text = Math.abs(value).toFixed(2);
  if (Number(text) === 0) return text;
  return (value < 0 ? "\u2212" : "+") + text;
}

/** A score and its threshold, with enough digits for a score below the threshold to look so. */
function formatScores(score, threshold) {
  for (let digits = 2; ; digits += 1) {
    const [one, other] = [score.toFixed(digits), threshold.toFixed(digits)];
    if (score >= threshold || one !== other || digits === 9) return [one, other];
  }
}

/** A column's name as people write it: "screen_play" is "Screen play". */
function displayName(name) {
  const words = name.replaceAll("_", " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** Sends a request to the server; throws a Problem with a message for people if it fails. */
async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, { cache: "no-store", ...options });
    if (response.ok) return response;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (options?.body instanceof Blob) await checkReadable(options.body);
    throw new Problem("The server does not answer. Is genre-demo still running in its terminal?");
  }
  let problem = new Problem(`The server answered with an error (${response.status}).`);
  try {
    const { message, code } = (await response.json()).error;
    problem = new Problem(message, code);
  } catch {
    // Not a response of our API: only the status is known.
  }
  throw problem;
}

/** Throws a Problem for a file that was changed or removed after it was chosen. */
async function checkReadable(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem("The poster's file can't be read any more. Choose it again.");
  }
}

function toBase64(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(new Problem("The poster's file can't be read any more. Choose it again."));
    reader.readAsDataURL(file);
  });
}

function showProblem(message) {
  byId("problem").textContent = message;
}

// ---- the movie: a field for each column that the model looks at

/** A text field. */
class TextField {
  constructor({ name, long, year }) {
    this.name = name;
    this.box = cloneTemplate("text-field");
    this.text = createElement(long ? "textarea" : "input");
    this.text.id = `column-${name}`;
    this.text.dir = "auto";
    this.text.autocomplete = "off";
    this.text.spellcheck = false;
    const label = this.box.querySelector("label");
    label.append(isolated(displayName(name)));
    label.htmlFor = this.text.id;
    label.after(this.text);
    const hint = this.box.querySelector(".hint");
    hint.id = `${this.text.id}-hint`;
    if (long) {
      this.text.rows = 2;
      this.text.addEventListener("input", () => this.grow());
      this.text.addEventListener("keydown", (event) => {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("movie").requestSubmit();
      });
    } else {
      this.text.type = "text";
      this.text.placeholder = year ? "Heat (1995)" : "";
    }
    if (year) {
      hint.textContent = "Best with the year in brackets.";
      this.text.setAttribute("aria-describedby", hint.id);
    } else {
      hint.remove();
    }
  }

  /** Fits the height to the text, up to the maximum in page.css, above which it scrolls. */
  grow() {
    this.text.style.height = "auto";
    this.text.style.height = `${this.text.scrollHeight + 2}px`;
  }

  get empty() {
    return !this.text.value.trim();
  }

  async value() {
    const { length } = [...this.text.value];
    if (length > model.max_characters) {
      const [given, most] = [length, model.max_characters].map((count) => count.toLocaleString("en"));
      throw new Problem(`The ${this.name.replaceAll("_", " ")} has ${given} characters; up to ${most} are read.`);
    }
    return this.text.value;
  }

  showProblem() {}
}

/** A picture field. */
class PosterField {
  constructor({ name }) {
    this.name = name;
    this.file = null;
    this.box = cloneTemplate("poster-field");
    const find = (selector) => this.box.querySelector(selector);
    [this.drop, this.preview, this.dropText] = [".drop", ".preview", ".drop-text"].map(find);
    [this.input, this.hint, this.remove, this.problem] = ["input", ".hint", ".quiet", ".problem"].map(find);
    this.input.id = `column-${name}`;
    this.hint.id = `${this.input.id}-hint`;
    this.input.setAttribute("aria-describedby", this.hint.id);
    const label = find("label");
    label.append(isolated(displayName(name)));
    label.htmlFor = this.input.id;
    this.remove.textContent = `Remove the ${name.replaceAll("_", " ")}`;
    this.show(null);
    this.preview.addEventListener("load", () => {
      this.preview.hidden = false;
      this.dropText.hidden = true;
    });
    this.input.addEventListener("change", () => {
      const files = [...this.input.files];
      this.input.value = ""; // so that the same file can be chosen again
      if (files.length) this.choose(files);
    });
    this.remove.addEventListener("click", () => {
      this.show(null);
      this.showProblem("");
      showProblem("");
      this.input.focus();
      if ([...fields.values()].every((field) => field.empty)) clearAnswer();
      else predict();
    });
  }

  get empty() {
    return this.file === null;
  }

  async value() {
    return toBase64(this.file);
  }

  showProblem(message) {
    this.problem.textContent = message;
  }

  show(file) {
    this.file = file;
    if (this.preview.src) URL.revokeObjectURL(this.preview.src);
    this.preview.removeAttribute("src");
    this.preview.hidden = true;
    if (file) this.preview.src = URL.createObjectURL(file);
    this.dropText.hidden = false;
    this.remove.hidden = !file;
    this.hint.textContent = file ? file.name : `JPEG, PNG, WebP and others, up to ${megabytes()} MB.`;
  }

  choose(files) {
    this.showProblem("");
    showProblem("");
    if (files.length === 0) return this.showProblem("That was no file. Save the picture first, then choose it here.");
    if (files.length > 1) return this.showProblem("One picture at a time, please.");
    const [file] = files;
    if (file.size === 0) return this.showProblem(`${file.name} is empty.`);
    if (file.size > model.max_poster_bytes) {
      const size = (file.size / 2 ** 20).toFixed(1);
      return this.showProblem(`${file.name} is too large: ${size} MB, and a poster may have up to ${megabytes()} MB.`);
    }
    this.show(file);
    predict();
  }
}

function megabytes() {
  return model.max_poster_bytes / 2 ** 20;
}

/** The poster field for a dropped or pasted picture: the one that contains the target, or the first. */
function pictureField(target) {
  const posters = [...fields.values()].filter((field) => field instanceof PosterField);
  return posters.find((field) => field.box.contains(target)) ?? posters[0];
}

function chooseFiles(files, target) {
  if (!model) return showProblem("The server has not answered yet. Reload the page to try again.");
  const field = pictureField(target);
  if (field) field.choose(files);
  else showProblem("This model does not look at pictures.");
}

document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return; // pasted text goes to the cursor
  event.preventDefault();
  chooseFiles(files, event.target);
});
// A picture dropped beside the field must not replace the page.
let dragDepth = 0;
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    const text = event.target.matches?.("input[type=text], textarea") && !event.dataTransfer.types.includes("Files");
    if (text) return;
    event.preventDefault();
    if (name === "dragenter") dragDepth += 1;
    if (name === "dragleave") dragDepth -= 1;
    if (name === "drop") {
      dragDepth = 0;
      chooseFiles([...event.dataTransfer.files], event.target);
    }
    for (const box of document.querySelectorAll(".drop")) box.classList.toggle("over", dragDepth > 0);
  });
}

byId("movie").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});

async function predict() {
  predictionRequest?.abort();
  const request = (predictionRequest = new AbortController());
  showProblem("");
  byId("answer").setAttribute("aria-busy", "true");
  byId("why").setAttribute("aria-busy", "true");
  try {
    await loadModel();
    const files = {};
    const movie = {};
    for (const [name, field] of fields) {
      if (field.empty) continue;
      if (field instanceof PosterField) files[name] = field.file;
      movie[name] = await field.value();
    }
    if (request.signal.aborted) return;
    const options = { method: "POST", body: JSON.stringify(movie), signal: request.signal };
    const response = await (await ask("api/predict", options)).json();
    for (const [name, field] of fields) field.showProblem(response.problems[name] ?? "");
    answer = response;
    answerFiles = files;
    for (const address of heatMapUrls.values()) URL.revokeObjectURL(address);
    heatMapUrls.clear();
    showAnswer();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) throw error;
    if (predictionRequest !== request) return;
    // Shown beside the picture if there is only one, as the message does not name the picture.
    const pictures = [...fields.values()].filter((field) => field instanceof PosterField && !field.empty);
    const beside = error.code === "not_an_image" && pictures.length === 1;
    for (const field of fields.values()) field.showProblem("");
    if (beside) pictures[0].showProblem(error.message);
    else showProblem(error.message);
    clearAnswer();
  } finally {
    if (predictionRequest === request) {
      byId("answer").removeAttribute("aria-busy");
      byId("why").removeAttribute("aria-busy");
    }
  }
}

// ---- the genres

/** Hides the answer, which may belong to another movie. */
function clearAnswer() {
  predictionRequest?.abort();
  heatMapRequest?.abort();
  answer = null;
  byId("answer").removeAttribute("aria-busy");
  byId("genres").hidden = true;
  byId("why").hidden = true;
  byId("summary").textContent = "Nothing to show.";
}

function showAnswer() {
  const predicted = answer.genres.filter((genre) => genre.predicted);
  const summary = byId("summary");
  if (predicted.length) {
    const list = createElement("strong");
    list.append(...listed(predicted.map((genre) => genre.name)));
    summary.replaceChildren(list, ` ${predicted.length > 1 ? "reach their thresholds" : "reaches its threshold"}.`);
  } else {
    summary.textContent = "No genre reaches its threshold.";
  }
  const unreadable = Object.keys(answer.problems).map((name) => name.replaceAll("_", " "));
  if (unreadable.length) summary.append(" Predicted without the ", ...listed(unreadable, " and the "), ", which can't be read.");
  const why = byId("why");
  byId("why-place").append(why); // moved out of the list before the list is replaced
  byId("bars").replaceChildren(...answer.genres.map(genreRow));
  byId("genres").hidden = false;
  // On a narrow page the reasons are inside the list and would hide genres, so nothing is chosen.
  if (narrow.matches) {
    selectedGenre = null;
    why.hidden = true;
  } else {
    selectGenre(defaultGenre());
  }
  if (onePerRow.matches) byId("answer").scrollIntoView();
}

/** The genre to explain by default: the previous one if it is predicted again, or the first. */
function defaultGenre() {
  const previous = answer.genres.find((genre) => genre.name === selectedGenre && genre.predicted);
  return previous?.name ?? answer.predicted[0] ?? answer.genres[0].name;
}

function genreRow(genre) {
  const item = createElement("li", genre.predicted ? "predicted" : "");
  const label = createElement("label");
  const radio = createElement("input");
  radio.type = "radio";
  radio.name = "genre";
  radio.value = genre.name;
  const score = genre.score.toFixed(2);
  const verdict = genre.predicted ? "predicted" : "not predicted";
  const [precise, threshold] = formatScores(genre.score, genre.threshold);
  radio.setAttribute("aria-label", `${genre.name} ${precise}, ${verdict}, threshold ${threshold}`);
  radio.addEventListener("change", () => selectGenre(genre.name));
  const bar = createElement("span", "bar");
  bar.style.setProperty("--score", genre.score);
  bar.style.setProperty("--threshold", genre.threshold);
  const name = isolated(genre.name, "name");
  const value = createElement("span", "value", score);
  label.title = `score ${precise}, threshold ${threshold}`;
  label.append(radio, name, bar, value);
  item.append(label);
  return item;
}

// ---- the reasons

function selectGenre(name) {
  selectedGenre = name;
  const genre = answer.genres.find((each) => each.name === name);
  let selectedItem = null;
  for (const item of byId("bars").children) {
    const radio = item.querySelector("input");
    radio.checked = radio.value === name;
    item.classList.toggle("chosen", radio.checked);
    if (radio.checked) selectedItem = item;
  }
  explain(genre);
  moveReasons(selectedItem);
  loadHeatMaps(genre);
}

/** Puts the reasons under their genre on a narrow page, and keeps the genre where it was touched. */
function moveReasons(item) {
  const oldTop = item.getBoundingClientRect().top;
  const wasInList = byId("why").parentElement !== byId("why-place");
  (narrow.matches ? item : byId("why-place")).append(byId("why"));
  if (narrow.matches && wasInList) scrollBy(0, item.getBoundingClientRect().top - oldTop);
}
narrow.addEventListener("change", () => {
  if (!answer) return;
  if (selectedGenre !== null) moveReasons(document.querySelector("#bars .chosen"));
  else selectGenre(defaultGenre());
});

/** The class for a branch's colour, by its index; page.css has six. */
function branchClass(index) {
  return `branch-${index % 6}`;
}

function explain(genre) {
  const { name } = genre;
  const [score, threshold] = formatScores(genre.score, genre.threshold);
  byId("why").hidden = false;
  byId("why-heading").replaceChildren("Why ", isolated(name), genre.predicted ? "" : " is not predicted");
  byId("why-score").textContent =
    `Score ${score}, ${genre.predicted ? "at or above" : "below"} its threshold of ${threshold}.`;

  const parts = [["bias", "Bias", genre.bias]];
  model.branches.forEach((branch, index) => {
    const hasColumn = Object.hasOwn(answer.explanations, branch.name);
    const label = hasColumn ? displayName(branch.label) : `No ${branch.label.replaceAll("_", " ")}`;
    parts.push([branchClass(index), label, genre.branches[branch.name]]);
  });
  if (genre.cooccurrence !== undefined) parts.push(["cooccurrence", "Co-occurrence", genre.cooccurrence]);
  parts.push(["total", "Sum", genre.logit]);
  drawBars(byId("parts"), parts);
  byId("parts-hint").textContent =
    "Bias is the model's score for any movie with these columns, before it reads them; the parts add up exactly. " +
    (genre.cooccurrence === undefined ? "" : "Co-occurrence is what the scores of all genres add. ") +
    (model.activation === "softmax"
      ? "The sums of all genres share a total of 1 among them (softmax); the score is this genre's share."
      : "The sum becomes the score by the logistic function: 0 is a score of 0.50.");

  const reasons = [];
  for (const branch of model.branches) {
    const explanation = answer.explanations[branch.name];
    if (!explanation) continue;
    if (explanation.kind === "heat map") reasons.push(heatReason(branch, explanation, genre));
    else reasons.push(wordsReason(branch, explanation, genre));
  }
  byId("reasons").replaceChildren(...reasons);
}

function wordsReason(branch, explanation, genre) {
  const reason = cloneTemplate("words-reason");
  reason.dataset.branch = branch.name;
  const [heading, markedText, list, hint] = ["h3", ".marked", ".words", ".hint"].map((each) => reason.querySelector(each));
  // For a poster, found.text is the words that were read on it.
  const text = explanation.text ?? answer.columns[branch.column];
  const label = branch.label.replaceAll("_", " ");
  heading.replaceChildren("Words of the ", isolated(label));
  if (explanation.kind === "none") {
    heading.replaceChildren(isolated(displayName(branch.label)));
    if (typeof text === "string") markedText.textContent = text;
    list.remove();
    hint.textContent = explanation.problem;
    return reason;
  }
  const words = explanation.parts.map((word) => ({ ...word, adds: word.adds[genre.name] }));
  markWords(markedText, text, words);
  const long = text.length > 120;
  reason.classList.toggle("long", long);
  if (long) markedText.tabIndex = 0; // it can scroll, so it must be reachable by keyboard
  const ranked = rankWords(words);
  const shown = ranked.slice(0, MANY_WORDS);
  const rows = shown.map(([word, adds]) => [direction(adds), shorten(word), adds]);
  const rest = ranked.slice(MANY_WORDS);
  if (rest.length && explanation.exact) {
    const sum = rest.reduce((total, [, adds]) => total + adds, 0);
    rows.push([direction(sum), `${rest.length} more`, sum]);
  }
  drawBars(list, rows);
  const known = new Set(ranked.map(([word]) => word.toLowerCase()));
  const unknown = [...new Set(words.filter((word) => word.adds === 0 && !known.has(word.text.toLowerCase())).map((word) => word.text))];
  const others = unknown.length > MANY_WORDS ? " and others" : "";
  const sum = signed(genre.branches[branch.name]);
  if (!ranked.length) hint.append("The model knows none of these words.");
  else if (!explanation.exact)
    hint.append("The ", isolated(label), ` adds ${sum} as a whole; its words don't add up to that (${explanation.method}).`);
  else {
    hint.append(`They add up to ${sum}, what the `, isolated(label), ` adds (${explanation.method}).`);
    if (unknown.length)
      hint.append(" Unknown to the model: ", ...listed(unknown.slice(0, MANY_WORDS).map(shorten)), `${others}.`);
  }
  return reason;
}

/** A word shortened for a list, as text without spaces can have thousands of characters. */
function shorten(word) {
  const letters = [...word];
  return letters.length > LONG_WORD ? `${letters.slice(0, LONG_WORD - 1).join("")}…` : word;
}

/** Each word once, with the sum of its contributions, largest magnitude first. */
function rankWords(words) {
  const sums = new Map();
  for (const { text, adds } of words) {
    const key = text.toLowerCase();
    const [spelling, sum] = sums.get(key) ?? [text, 0];
    sums.set(key, [spelling, sum + adds]);
  }
  return [...sums.values()].filter(([, adds]) => adds !== 0).sort((a, b) => Math.abs(b[1]) - Math.abs(a[1]));
}

/** Marks the words in their text, with a strength in proportion to their contributions. */
function markWords(target, text, words) {
  const maxAdds = Math.max(...words.map((word) => Math.abs(word.adds)), 0) || 1;
  // Spans count code points, some of which are two units of a JavaScript string.
  const letters = Array.from(text);
  const pieces = [];
  let position = 0;
  for (const word of words.filter((each) => each.span).sort((a, b) => a.span[0] - b.span[0])) {
    const [start, end] = word.span;
    if (start < position) continue;
    pieces.push(letters.slice(position, start).join(""));
    const strong = Math.abs(word.adds) >= maxAdds / 10; // nearly every word of a long text adds a little
    const marked = createElement("mark", strong ? direction(word.adds) : "", letters.slice(start, end).join(""));
    marked.style.setProperty("--strength", Math.abs(word.adds) / maxAdds);
    pieces.push(marked);
    position = end;
  }
  pieces.push(letters.slice(position).join(""));
  target.replaceChildren(...pieces);
}

function direction(value) {
  if (value === 0) return "";
  return value > 0 ? "for" : "against";
}

/** Bars to the right and left of zero, on a common scale. */
function drawBars(list, rows) {
  const values = rows.map(([, , value]) => value);
  const minimum = Math.min(0, ...values);
  const range = Math.max(0, ...values) - minimum || 1;
  const share = (value) => `${(value / range) * 100}%`;
  list.replaceChildren(
    ...rows.map(([kind, name, value]) => {
      const item = createElement("li", kind);
      const bar = createElement("span", "swing");
      bar.style.setProperty("--zero", share(-minimum));
      bar.style.setProperty("--from", share(Math.min(0, value) - minimum));
      bar.style.setProperty("--size", share(Math.abs(value)));
      item.append(isolated(name, "name"), bar, createElement("span", "value", signed(value)));
      return item;
    }),
  );
}

function heatReason(branch, explanation, genre) {
  const reason = cloneTemplate("heat-reason");
  reason.dataset.branch = branch.name;
  const label = branch.label.replaceAll("_", " ");
  reason.querySelector("h3").append("Where in the ", isolated(label));
  reason.querySelector("img").alt = `The ${label}, bright where the evidence for ${genre.name} lies`;
  const caption = reason.querySelector("figcaption");
  if (genre.branches[branch.name] < 0)
    caption.append("As a whole the ", isolated(label), " is evidence against ", isolated(genre.name), "; the map shows where the evidence for it lies. ");
  caption.append("Bright: where the evidence for ", isolated(genre.name), ` lies (${explanation.method}). It shows where, not how much.`);
  return reason;
}

async function loadHeatMaps(genre) {
  heatMapRequest?.abort();
  const request = (heatMapRequest = new AbortController());
  for (const branch of model.branches) {
    if (answer.explanations[branch.name]?.kind !== "heat map") continue;
    await drawHeatMap(branch, genre, request);
    if (heatMapRequest !== request) return;
  }
}

async function drawHeatMap(branch, genre, request) {
  const reason = [...byId("reasons").children].find((each) => each.dataset.branch === branch.name);
  const image = reason.querySelector("img");
  const key = JSON.stringify([branch.name, genre.name]);
  if (!heatMapUrls.has(key)) {
    image.setAttribute("aria-busy", "true");
    try {
      const query = new URLSearchParams({ branch: branch.name, genre: genre.name });
      const options = { method: "POST", body: answerFiles[branch.column], signal: request.signal };
      const picture = await (await ask(`api/heat?${query}`, options)).blob();
      if (heatMapRequest !== request) return;
      heatMapUrls.set(key, URL.createObjectURL(picture));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Problem)) throw error;
      reason.querySelector(".problem").textContent = error.message;
      return;
    }
  }
  image.src = heatMapUrls.get(key);
  image.hidden = false;
  image.removeAttribute("aria-busy");
}

// ---- the model

/** Requests the model once, and builds a field for each of its columns. */
function loadModel() {
  modelPromise ??= fetchModel().catch((error) => {
    modelPromise = null;
    throw error;
  });
  return modelPromise;
}

async function fetchModel() {
  model = await (await ask("api/model")).json();
  for (const column of model.columns) {
    const field = column.of === "poster" ? new PosterField(column) : new TextField(column);
    fields.set(column.name, field);
    byId("fields").append(field.box);
  }
  const names = model.columns.map((column) => column.name.replaceAll("_", " "));
  const last = names.pop();
  const number = model.genres.length;
  const what = names.length ? `${names.join(", ")} or ${last}, or ${names.length > 1 ? "several of them" : "both"}` : last;
  byId("about").textContent = `Enter a movie's ${what}. ${model.checkpoint} predicts which of ${number} genre${number === 1 ? "" : "s"} the movie has, and shows why.`;
}

loadModel().catch((error) => {
  if (!(error instanceof Problem)) throw error;
  showProblem(error.message);
});
