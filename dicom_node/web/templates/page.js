// The list renews itself, and loops play. Everything else on the page works without this.
"use strict";

// --- the list ---

const badge = document.querySelector("[data-refresh]");
if (badge) {
  badge.hidden = false;
  setInterval(renew, 1000 * Number(badge.dataset.refresh));
  document.addEventListener("visibilitychange", renew);
}

async function renew() {
  if (document.hidden) return;
  let text;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, redirect: "error" });
    if (!answer.ok) throw new Error(answer.statusText);
    text = await answer.text();
  } catch {
    badge.textContent = "The node does not answer";
    return;
  }
  badge.textContent = "Renews itself";
  const fresh = new DOMParser().parseFromString(text, "text/html").getElementById("live");
  const shown = document.getElementById("live");
  if (!fresh || !shown || shown.contains(pressed)) return;
  const before = states(shown);
  const changed = [...states(fresh)].filter(([uid, state]) => before.get(uid) !== state);
  const focused = shown.contains(document.activeElement) ? address(document.activeElement) : null;
  const scroll = shown.querySelector(".scroll")?.scrollLeft ?? 0;
  shown.replaceChildren(...fresh.childNodes);
  shown.querySelector(".scroll")?.scrollTo(scroll, 0);
  if (focused) shown.querySelector(focused)?.focus({ preventScroll: true });
  if (changed.length) document.getElementById("said").textContent = said(changed, before);
}

function address(element) {
  const form = element.closest("form");
  if (form) return `form[action="${form.getAttribute("action")}"] button`;
  return element.href ? `a[href="${element.getAttribute("href")}"]` : ".scroll";
}

let pressed = null; // a button that is being pressed is not taken away
document.addEventListener("pointerdown", (event) => { pressed = event.target; });
document.addEventListener("pointerup", () => { setTimeout(() => { pressed = null; }, 500); });

function states(list) {
  return new Map([...list.querySelectorAll("[data-study]")].map((row) => [row.dataset.study, row.dataset.state]));
}

function said(changed, before) {
  const added = changed.filter(([uid]) => !before.has(uid)).length;
  const moved = changed.filter(([uid]) => before.has(uid)).map(([, state]) => state);
  const parts = added ? [`${added} new ${added === 1 ? "study" : "studies"}`] : [];
  if (moved.length === 1) parts.push(`one study is ${moved[0]}`);
  if (moved.length > 1) parts.push(`${moved.length} studies have changed`);
  return parts.join(", ");
}

// --- loops ---

for (const box of document.querySelectorAll("[data-cine]")) new Player(box).offer();

function Player(box) {
  const screen = box.querySelector(".screen");
  const [play, attention] = ["play", "attention"].map((name) => box.querySelector(`[data-do=${name}]`));
  const [seek, position, legend] = ["input", ".position", ".legend"].map((name) => box.querySelector(name));
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  let cine = null;
  let timer = null;
  let at = 0;
  let hasHeat = false;

  this.offer = () => {
    box.querySelector(".controls").hidden = false;
    play.addEventListener("click", () => (timer ? pause() : start()));
    attention.addEventListener("click", () => toggle());
    seek.addEventListener("input", async () => { pause(); await load(); show(Number(seek.value) - 1); });
    seek.addEventListener("focus", load);
  };

  async function load() {
    if (cine) return true;
    try {
      const found = await (await fetch(box.dataset.cine)).json();
      found.plain = await Promise.all(found.frames.map(picture));
      found.heat = null;
      cine = found;
    } catch {
      position.textContent = "cannot be shown";
      return false;
    }
    canvas.width = 2 * cine.width;
    canvas.height = 2 * cine.height;
    seek.max = cine.plain.length;
    attention.disabled = !cine.attention.length;
    screen.replaceChildren(canvas);
    at = Math.floor(cine.plain.length / 2);
    show(at);
    return true;
  }

  async function start() {
    if (!(await load()) || timer) return;
    timer = setInterval(() => show((at + 1) % cine.plain.length), cine.frame_time_ms);
    say(play, "Pause");
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    say(play, "Play");
  }

  async function toggle() {
    if (!(await load()) || !cine.attention.length) return;
    if (!cine.heat) cine.heat = await Promise.all(cine.attention.map(picture));
    hasHeat = !hasHeat;
    attention.setAttribute("aria-pressed", String(hasHeat));
    legend.hidden = !hasHeat;
    show(at);
  }

  function show(index) {
    at = index;
    const image = hasHeat ? cine.heat[at] : cine.plain[at];
    // Under the attention stands a caption, which the page has in words: the picture alone is drawn.
    const rows = Math.min(image.naturalHeight, Math.round((image.naturalWidth * cine.height) / cine.width));
    canvas.getContext("2d").drawImage(image, 0, 0, image.naturalWidth, rows, 0, 0, canvas.width, canvas.height);
    seek.value = at + 1;
    seek.setAttribute("aria-valuetext", `${at + 1} of ${cine.plain.length}`);
    position.textContent = `${at + 1}/${cine.plain.length}`;
    canvas.setAttribute("aria-label", `${box.dataset.name}${hasHeat ? ", with attention" : ""}`);
    canvas.dataset.frame = at + 1;
  }

  function say(button, word) {
    button.textContent = word;
    button.setAttribute("aria-label", `${word} ${box.dataset.name.toLowerCase()}`);
  }
}

async function picture(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
