// Makes elements. What is put into them is text, whatever it looks like: there is no way here to
// make markup of it.

// el("p", {class: "x"}, "text", child …); a function among the properties listens to its event.
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") made.addEventListener(name, value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const SAID_MS = 5_000;
let unsay;

// Tells a screen reader, and shows for a while, what has happened.
export function say(text) {
  const said = document.getElementById("said");
  clearTimeout(unsay);
  // Empty in between, so that the same text is said again.
  said.textContent = "";
  requestAnimationFrame(() => { said.textContent = text; });
  unsay = setTimeout(() => { said.textContent = ""; }, SAID_MS);
}

// A table that can be scrolled by itself where the screen is narrow. Columns are
// {name, number: whether it is one}; rows are arrays of texts or elements.
export function table(caption, columns, rows, { id, empty } = {}) {
  if (rows.length === 0 && empty) return el("p", { class: "empty", id }, empty);
  const kind = (column) => (column.number ? "number" : null);
  const head = columns.map((it) => el("th", { scope: "col", class: kind(it) }, it.name));
  const body = rows.map((row) =>
    el("tr", {}, row.map((cell, at) => {
      const properties = { class: kind(columns[at]) };
      if (at > 0) return el("td", properties, cell);
      return el("th", { scope: "row", ...properties }, cell);
    })));
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    el("table", { id },
      el("caption", {}, caption),
      el("thead", {}, el("tr", {}, head)),
      el("tbody", {}, body)));
}

// A part of a view: its heading, and what `load` gives; says that it loads, and why it could not.
// Of loads that overlap the one that began last counts, whichever ends last.
export function section(title, load, { id } = {}) {
  const content = el("div", { class: "content", "aria-busy": "true" });
  const made = el("section", { id }, el("h2", {}, title), content);
  let newest = 0;
  const show = async () => {
    newest += 1;
    const own = newest;
    content.setAttribute("aria-busy", "true");
    if (!content.firstChild) content.replaceChildren(el("p", { class: "empty" }, "Loading…"));
    try {
      const loaded = [await load()].flat();
      if (own !== newest) return;
      content.replaceChildren(...loaded);
    } catch (error) {
      if (own !== newest || error.isSessionOver) return;
      content.replaceChildren(el("p", { class: "error", role: "alert" }, `${error.message} `,
        el("button", { type: "button", click: show }, "Try again")));
    }
    content.setAttribute("aria-busy", "false");
  };
  made.show = show;
  return made;
}

// A choice among a few, with its label.
export function choice(label, options, value, change) {
  const list = options.map(([name, text]) =>
    el("option", { value: name, selected: name === value }, text));
  return el("label", {}, `${label} `, el("select", { change: (it) => change(it.target.value) },
    list));
}

export function field(label, properties, hint) {
  const id = `field-${properties.name}`;
  const described = hint ? `${id}-hint` : null;
  return el("p", { class: "field" },
    el("label", { for: id }, label),
    el("input", { id, autocomplete: "off", "aria-describedby": described, ...properties }),
    hint ? el("span", { class: "hint", id: described }, hint) : null);
}

const dialog = document.getElementById("dialog");
// What it held, a secret maybe, goes with it; unless the next one is open by then.
dialog.addEventListener("close", () => {
  if (!dialog.open) dialog.replaceChildren();
});

// Opens the dialog. `submit` is called with the form's data, and the dialog closes unless it
// throws; what it returns is done after that.
export function ask(title, parts, action, submit) {
  const wrong = el("p", { class: "error", role: "alert" });
  const close = () => dialog.close();
  const confirm = action && el("button", { class: "primary" }, action);
  const cancel = el("button", { type: "button", click: close }, action ? "Cancel" : "Close");
  const form = el("form", {
    method: "dialog",
    submit: async (event) => {
      event.preventDefault();
      if (!submit) return close();
      wrong.textContent = "";
      confirm.disabled = true;
      try {
        const next = await submit(new FormData(form));
        close();
        next?.();
      } catch (error) {
        wrong.textContent = error.message;
      }
      confirm.disabled = false;
    },
  }, el("h2", { id: "dialog-title" }, title), parts, wrong,
  el("p", { class: "actions" }, cancel, confirm || null));
  dialog.replaceChildren(form);
  dialog.showModal();
}

const two = (number) => String(number).padStart(2, "0");

// 2026-11-28 14:05 in UTC; every view says so.
export function time(at) {
  if (!at) return "–";
  const date = new Date(at);
  const clock = `${two(date.getUTCHours())}:${two(date.getUTCMinutes())}`;
  return el("time", { datetime: date.toISOString() }, `${day(date)} ${clock}`);
}

export const day = (date) =>
  `${date.getUTCFullYear()}-${two(date.getUTCMonth() + 1)}-${two(date.getUTCDate())}`;

// How long ago, in the largest unit that is not zero.
export function age(at) {
  const seconds = Math.max(0, Math.floor((Date.now() - new Date(at)) / 1000));
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} days`;
}

// The seconds at which the UTC day began so many days before today's.
export function daysAgo(days) {
  const today = Math.floor(Date.now() / 86_400_000) * 86_400;
  return today - days * 86_400;
}
