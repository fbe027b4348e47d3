// Begins: the theme, who is signed in, and which view is shown. The view is in the address behind
// `#/`, so that going back and bookmarks work; nothing secret ever is.

import { account } from "./account.js";
import { call, prepare } from "./api.js";
import { clear, restyle } from "./charts.js";
import { el, field, say } from "./dom.js";
import { keys } from "./keys.js";
import { accounts, drift, health, margins, sinks } from "./operator.js";
import { forget, keepKey, keepUser, session, signOut } from "./session.js";

const THEME = "tollgate-theme";
const main = document.getElementById("main");
const nav = document.getElementById("nav");
const out = document.getElementById("sign-out");

// Name in the address, title, the view, and who sees it.
const VIEWS = [
  ["account", "Account", account, () => true],
  ["keys", "Keys", keys, (me) => me.caller.is_owner],
  ["accounts", "Accounts", accounts, (me) => me.caller.is_operator],
  ["margins", "Margins", margins, (me) => me.caller.is_operator],
  ["sinks", "Sinks", sinks, (me) => me.caller.is_operator],
  ["drift", "Drift", drift, (me) => me.caller.is_operator],
  ["health", "Health", health, (me) => me.caller.is_operator],
];

let config = { supabase: null, topup_cents: null };
let me = null;
// Ends what a view does by itself, such as asking again.
let leave = new AbortController();

function theme() {
  const choice = document.getElementById("theme");
  const set = (name) => {
    if (name) document.documentElement.dataset.theme = name;
    else delete document.documentElement.dataset.theme;
    restyle();
  };
  choice.value = sessionStorage.getItem(THEME) ?? "";
  set(choice.value);
  choice.addEventListener("change", () => {
    sessionStorage.setItem(THEME, choice.value);
    set(choice.value);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
}

// An empty page, for another view.
function turn(title) {
  leave.abort();
  leave = new AbortController();
  clear();
  document.getElementById("dialog").close();
  document.title = `${title} · Tollgate`;
  main.replaceChildren();
}

function signIn(why) {
  me = null;
  nav.hidden = true;
  out.hidden = true;
  turn("Sign in");
  const wrong = el("p", { class: "error", role: "alert" }, why ?? "");
  const submit = (take) => async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    const data = new FormData(event.target);
    const button = event.target.querySelector("button");
    button.disabled = true;
    try {
      await take(data);
      await enter();
    } catch (error) {
      forget();
      // A refused key has led here already, with its reason.
      if (!error.isSessionOver) wrong.textContent = error.message;
    }
    button.disabled = false;
  };
  const byKey = el("form", {
    "aria-labelledby": "by-key",
    submit: submit((data) => keepKey(data.get("key").trim())),
  }, el("h2", { id: "by-key" }, "With an API key"),
  field("API key", { name: "key", type: "password", required: true, spellcheck: "false" },
    "It stays in this tab until you sign out or close it."),
  el("p", { class: "actions" }, el("button", { class: "primary" }, "Sign in")));
  const byMail = config.supabase && el("form", {
    "aria-labelledby": "by-mail",
    submit: submit((data) => keepUser(config.supabase, data.get("email"), data.get("password"))),
  }, el("h2", { id: "by-mail" }, "With e-mail and password"),
  field("E-mail address", { name: "email", type: "email", required: true,
    autocomplete: "username" }),
  field("Password", { name: "password", type: "password", required: true,
    autocomplete: "current-password" }),
  el("p", { class: "actions" }, el("button", { class: "primary" }, "Sign in")));
  main.append(el("h1", {}, "Sign in"), wrong,
    el("div", { class: "doors" }, byMail || null, byKey));
  main.querySelector("input").focus();
}

// Takes the session for good, once the server says whose it is.
async function enter() {
  me = await call("/v1/account");
  const allowed = VIEWS.filter(([, , , sees]) => sees(me));
  nav.replaceChildren(el("ul", {}, allowed.map(([name, title]) =>
    el("li", {}, el("a", { href: `#/${name}` }, title)))));
  nav.hidden = false;
  out.hidden = false;
  say(`Signed in to ${me.name}.`);
  show();
}

function show() {
  if (!me) return;
  const name = location.hash.replace(/^#\//, "");
  const allowed = VIEWS.filter(([, , , sees]) => sees(me));
  const [own, title, view] = allowed.find(([it]) => it === name) ?? allowed[0];
  turn(title);
  for (const link of nav.querySelectorAll("a")) {
    const isHere = link.getAttribute("href") === `#/${own}`;
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.append(el("h1", {}, title));
  main.append(...view({ me, config, signal: leave.signal }));
  for (const part of main.querySelectorAll("section")) part.show?.();
}

addEventListener("hashchange", () => {
  // The link past the navigation changes it too.
  if (!location.hash.startsWith("#/")) return;
  show();
  main.focus();
});

out.addEventListener("click", async () => {
  const ending = signOut(config.supabase);
  history.replaceState(null, "", location.pathname);
  signIn();
  say("Signed out.");
  await ending;
});

async function begin() {
  theme();
  try {
    config = await (await fetch("/console/config.json")).json();
  } catch {
    // Without it there is a key to sign in with.
  }
  prepare(config, (why) => signIn(`${why ?? "You are not signed in any more."} Please sign in.`));
  if (!session()) return signIn();
  try {
    await enter();
  } catch (error) {
    if (!error.isSessionOver) signIn(error.message);
  }
}

begin();
