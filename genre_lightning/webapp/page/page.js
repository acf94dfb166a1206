// The page's behaviour: asks the API of genre_lightning/demo.py and shows what it answers.
// Names and titles come from files and people, so they only ever become text, never markup.
"use strict";

const at = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 65.99rem)"); // no column for the reasons, as in page.css
const onePerRow = matchMedia("(max-width: 43.99rem)");

let model = null; // what /api/model says
let poster = null; // the File chosen
let answer = null; // what /api/predict says, of `asked`
let asked = null; // the poster that the answer is about
let chosen = null; // name of the genre that is explained
let asking = null; // AbortController of the question under way
let looking = null; // and of the heat map
const heats = new Map(); // genre -> address of its heat map

class Problem extends Error {}

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function signed(value) {
  const text = Math.abs(value).toFixed(2);
  if (Number(text) === 0) return text;
  return (value < 0 ? "\u2212" : "+") + text;
}

/** Asks the server; a Problem says in words for people what went wrong. */
async function ask(address, options) {
  let response;
  try {
    response = await fetch(address, { cache: "no-store", ...options });
    if (response.ok) return response;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (options?.body) {
      // A file that was changed or removed after it was chosen fails just as a missing server does.
      try {
        await options.body.slice(0, 1).arrayBuffer();
      } catch {
        throw new Problem("The poster's file can't be read any more. Choose it again.");
      }
    }
    throw new Problem("The server does not answer. Is genre-demo still running in its terminal?");
  }
  let message = `The server answered with an error (${response.status}).`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not an answer of ours: the status has to do.
  }
  throw new Problem(message);
}

function complain(message) {
  at("problem").textContent = message;
}

// ---- the movie

function show(file) {
  poster = file;
  const preview = at("preview");
  if (preview.src) URL.revokeObjectURL(preview.src);
  preview.removeAttribute("src");
  preview.hidden = true;
  if (file) preview.src = URL.createObjectURL(file);
  at("drop-text").hidden = false;
  at("remove").hidden = !file;
  at("poster-hint").textContent = file ? file.name : limit();
}

function limit() {
  return model ? `JPEG, PNG, WebP and others, up to ${model.max_poster_bytes / 2 ** 20} MB.` : "";
}

function choose(files) {
  complain("");
  if (!model) return complain("The server has not answered yet. Reload the page to try again.");
  if (!model.uses_posters) return complain("This model does not look at posters.");
  if (files.length === 0) return complain("That was no file. Save the picture first, then choose it here.");
  if (files.length > 1) return complain("One poster at a time, please.");
  const [file] = files;
  if (file.size === 0) return complain(`${file.name} is empty.`);
  if (file.size > model.max_poster_bytes) {
    const size = (file.size / 2 ** 20).toFixed(1);
    return complain(`${file.name} is too large: ${size} MB, and a poster may have up to ${model.max_poster_bytes / 2 ** 20} MB.`);
  }
  show(file);
  predict();
}

at("preview").addEventListener("load", () => {
  at("preview").hidden = false;
  at("drop-text").hidden = true;
});
at("poster").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // so that the same file can be chosen again
  if (files.length) choose(files);
});
at("remove").addEventListener("click", () => {
  show(null);
  complain("");
  at("poster").focus();
  if (at("title").value.trim()) predict();
  else forget();
});
document.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) return; // text goes where the cursor is
  event.preventDefault();
  choose(files);
});
// A picture that misses the field must not replace the page.
let inside = 0;
for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    const text = event.target.id === "title" && !event.dataTransfer.types.includes("Files");
    if (text) return;
    event.preventDefault();
    if (name === "dragenter") inside += 1;
    if (name === "dragleave") inside -= 1;
    if (name === "drop") {
      inside = 0;
      choose([...event.dataTransfer.files]);
    }
    at("drop").classList.toggle("over", inside > 0);
  });
}

at("movie").addEventListener("submit", (event) => {
  event.preventDefault();
  predict();
});

async function predict() {
  asking?.abort();
  const mine = (asking = new AbortController());
  const about = poster;
  const title = at("title").value;
  complain("");
  at("answer").setAttribute("aria-busy", "true");
  at("why").setAttribute("aria-busy", "true");
  try {
    if (!model) await meet();
    const query = model.uses_titles ? `?title=${encodeURIComponent(title)}` : "";
    const response = await ask(`api/predict${query}`, { method: "POST", body: about, signal: mine.signal });
    const found = await response.json();
    answer = found;
    asked = about;
    for (const address of heats.values()) URL.revokeObjectURL(address);
    heats.clear();
    tell();
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Problem)) throw error;
    if (asking !== mine) return;
    complain(error.message);
    forget();
  } finally {
    if (asking === mine) {
      at("answer").removeAttribute("aria-busy");
      at("why").removeAttribute("aria-busy");
    }
  }
}

// ---- the genres

/** No answer is better than one that belongs to another movie. */
function forget() {
  asking?.abort();
  looking?.abort();
  answer = null;
  at("answer").removeAttribute("aria-busy");
  at("genres").hidden = true;
  at("why").hidden = true;
  at("summary").textContent = "Nothing to show.";
}

function tell() {
  const named = answer.genres.filter((genre) => genre.predicted);
  const summary = at("summary");
  if (named.length) {
    const list = make("strong", "", named.map((genre) => genre.name).join(", "));
    summary.replaceChildren(list, ` ${named.length > 1 ? "reach their thresholds" : "reaches its threshold"}.`);
  } else {
    summary.textContent = "No genre reaches its threshold.";
  }
  const why = at("why");
  at("why-place").append(why); // out of the list, before that is replaced
  at("bars").replaceChildren(...answer.genres.map(row));
  at("genres").hidden = false;
  // Where the reasons stand among the genres, they'd hide them unasked.
  if (narrow.matches) {
    chosen = null;
    why.hidden = true;
  } else {
    pick(first());
  }
  if (onePerRow.matches) at("answer").scrollIntoView();
}

/** The genre to explain unasked: the one explained before if it is named again, or the first. */
function first() {
  const still = answer.genres.find((genre) => genre.name === chosen && genre.predicted);
  return still?.name ?? answer.predicted[0] ?? answer.genres[0].name;
}

function row(genre) {
  const item = make("li", genre.predicted ? "named" : "");
  const label = make("label");
  const radio = make("input");
  radio.type = "radio";
  radio.name = "genre";
  radio.value = genre.name;
  const score = genre.score.toFixed(2);
  const verdict = genre.predicted ? "named" : "not named";
  radio.setAttribute("aria-label", `${genre.name} ${score}, ${verdict}, threshold ${genre.threshold.toFixed(2)}`);
  radio.addEventListener("change", () => pick(genre.name));
  const bar = make("span", "bar");
  bar.style.setProperty("--score", genre.score);
  bar.style.setProperty("--threshold", genre.threshold);
  const name = make("span", "name", genre.name);
  const value = make("span", "value", score);
  label.title = `threshold ${genre.threshold.toFixed(2)}`;
  label.append(radio, name, bar, value);
  item.append(label);
  return item;
}

// ---- the reasons

function pick(name) {
  chosen = name;
  const genre = answer.genres.find((each) => each.name === name);
  let held = null;
  for (const item of at("bars").children) {
    const radio = item.querySelector("input");
    radio.checked = radio.value === name;
    item.classList.toggle("chosen", radio.checked);
    if (radio.checked) held = item;
  }
  explain(genre);
  place(held);
  look(genre);
}

/** On a narrow page the reasons stand right under their genre, which stays where it was touched. */
function place(item) {
  const before = item.getBoundingClientRect().top;
  const scrolled = at("why").parentElement !== at("why-place");
  (narrow.matches ? item : at("why-place")).append(at("why"));
  if (narrow.matches && scrolled) scrollBy(0, item.getBoundingClientRect().top - before);
}
narrow.addEventListener("change", () => {
  if (!answer) return;
  if (chosen !== null) place(document.querySelector("#bars .chosen"));
  else pick(first());
});

function explain(genre) {
  const { name, score, threshold } = genre;
  at("why").hidden = false;
  at("why-heading").textContent = `Why ${name}${genre.predicted ? "" : " is not named"}`;
  at("why-score").textContent =
    `Score ${score.toFixed(2)}, ${genre.predicted ? "at or above" : "below"} its threshold of ${threshold.toFixed(2)}.`;

  const parts = [["bias", "Bias", genre.bias]];
  if (model.uses_titles) parts.push(["title", answer.title === null ? "No title" : "Title", genre.title]);
  if (model.uses_posters) parts.push(["poster", answer.poster ? "Poster" : "No poster", genre.poster]);
  parts.push(["total", "Sum", genre.logit]);
  swings(at("parts"), parts);
  at("parts-hint").textContent =
    "Bias is what the model says of any movie; the parts add up exactly. " +
    (model.activation === "softmax"
      ? "The sums of all genres share a total of 1 among them (softmax); the score is this genre's share."
      : "The sum becomes the score by the logistic function: 0 is a score of 0.50.");

  at("why-title").hidden = answer.title === null;
  if (answer.title !== null) explainTitle(genre);

  at("why-poster").hidden = !answer.poster;
  if (answer.poster) {
    const against = genre.poster < 0 ? `As a whole the poster speaks against ${name}; the map shows what speaks for it. ` : "";
    at("heat-hint").textContent =
      `${against}Bright: where the poster speaks for ${name} (Grad-CAM). It shows where, not how much.`;
  }
}

function explainTitle(genre) {
  if (answer.words === null) {
    at("marked").replaceChildren(answer.title);
    at("words").replaceChildren();
    at("words-hint").textContent = answer.words_problem;
    return;
  }
  const words = answer.words.map((word) => ({ ...word, adds: word.adds[genre.name] }));
  const most = Math.max(...words.map((word) => Math.abs(word.adds)), 0) || 1;

  // Places are counted in characters, of which some are two in a string here.
  const letters = Array.from(answer.title);
  const pieces = [];
  let done = 0;
  for (const word of words.filter((each) => each.span).sort((a, b) => a.span[0] - b.span[0])) {
    const [start, end] = word.span;
    if (start < done) continue;
    pieces.push(letters.slice(done, start).join(""));
    const mark = make("mark", direction(word.adds), letters.slice(start, end).join(""));
    mark.style.setProperty("--strength", Math.abs(word.adds) / most);
    pieces.push(mark);
    done = end;
  }
  pieces.push(letters.slice(done).join(""));
  at("marked").replaceChildren(...pieces);

  const ranked = words.filter((word) => word.adds !== 0).sort((a, b) => Math.abs(b.adds) - Math.abs(a.adds));
  swings(at("words"), ranked.map((word) => [direction(word.adds), word.text, word.adds]));
  const unknown = words.filter((word) => word.adds === 0).map((word) => word.text);
  const rest = unknown.length ? ` The model knows nothing of: ${unknown.join(", ")}.` : "";
  at("words-hint").textContent = ranked.length
    ? `They add up to the title's ${signed(genre.title)}, against an empty title (integrated gradients, exact).${rest}`
    : "The model knows none of this title's words.";
}

function direction(value) {
  if (value === 0) return "";
  return value > 0 ? "for" : "against";
}

/** Bars to the right and left of zero, on one scale. */
function swings(list, rows) {
  const values = rows.map(([, , value]) => value);
  const least = Math.min(0, ...values);
  const range = Math.max(0, ...values) - least || 1;
  const share = (value) => `${(value / range) * 100}%`;
  list.replaceChildren(
    ...rows.map(([kind, name, value]) => {
      const item = make("li", kind);
      const bar = make("span", "swing");
      bar.style.setProperty("--zero", share(-least));
      bar.style.setProperty("--from", share(Math.min(0, value) - least));
      bar.style.setProperty("--size", share(Math.abs(value)));
      item.append(make("span", "name", name), bar, make("span", "value", signed(value)));
      return item;
    }),
  );
}

async function look(genre) {
  looking?.abort();
  if (!answer.poster) return;
  const mine = (looking = new AbortController());
  const image = at("heat");
  image.alt = `The poster, bright where it speaks for ${genre.name}`;
  at("heat-problem").textContent = "";
  if (!heats.has(genre.name)) {
    image.setAttribute("aria-busy", "true");
    try {
      const query = `?genre=${encodeURIComponent(genre.name)}`;
      const response = await ask(`api/heat${query}`, { method: "POST", body: asked, signal: mine.signal });
      const picture = await response.blob();
      if (looking !== mine) return;
      heats.set(genre.name, URL.createObjectURL(picture));
    } catch (error) {
      if (error.name === "AbortError") return;
      if (!(error instanceof Problem)) throw error;
      image.hidden = true;
      at("heat-problem").textContent = error.message;
      return;
    }
  }
  image.src = heats.get(genre.name);
  image.hidden = false;
  image.removeAttribute("aria-busy");
}

// ---- the model

async function meet() {
  model = await (await ask("api/model")).json();
  const what = model.uses_titles && model.uses_posters ? "a title, a poster, or both" : model.uses_titles ? "a title" : "a poster";
  at("about").textContent = `Give ${what}. ${model.checkpoint} names what it sees among ${model.genres.length} genres, and why.`;
  at("title-field").hidden = !model.uses_titles;
  at("poster-field").hidden = !model.uses_posters;
  at("title").maxLength = model.max_title_characters;
  at("poster-hint").textContent = limit();
}

meet().catch((error) => {
  if (!(error instanceof Problem)) throw error;
  complain(error.message);
});
