// For whoever runs the service: accounts, margins, sinks, drift, health.

import { all, call } from "./api.js";
import { chart } from "./charts.js";
import { age, ask, choice, day, daysAgo, el, field, say, section, table, time } from "./dom.js";
import { height, percent, pico, picoOfNano, usd, whole } from "./exact.js";

const RANGES = [["7", "7 days"], ["30", "30 days"], ["90", "90 days"]];
// Events of one state that are listed.
const EVENTS_SHOWN = 100;

const since = (days) => `start_time=${daysAgo(Number(days) - 1)}`;

export function accounts() {
  return [
    el("p", { class: "about" }, "All times are in UTC; a month begins on its first day, 0:00."),
    section("All accounts", async () => {
      const { rows, isCut } = await all("/admin/v1/accounts");
      const columns = [
        { name: "Account" },
        { name: "Kind" },
        { name: "Plan" },
        { name: "Balance", number: true },
        { name: "Set aside", number: true },
        { name: "Limit a month", number: true },
        { name: "Made" },
      ];
      const amount = (nano) => (nano === null ? "–" : usd(picoOfNano(nano)));
      const shown = table("Accounts, the oldest first", columns, rows.map((it) => [
        it.name, it.status === "active" ? it.kind : `${it.kind}, ${it.status}`, it.plan ?? "–",
        amount(it.balance_nusd), amount(it.held_nusd), amount(it.limit_nusd), time(it.created_at),
      ]), { id: "accounts", empty: "There is no account yet." });
      return isCut ? [shown, el("p", { class: "empty" }, "Newer accounts are not shown.")] : shown;
    }),
  ];
}

export function margins() {
  let days = "7";
  let group = "model";
  const byDay = section("By day", () => marginChart(days), { id: "margin-days" });
  const byGroup = section("In this time", () => marginTable(days, group), { id: "margin-groups" });
  const groups = [["model", "model"], ["account", "account"], ["upstream", "upstream"]];
  return [
    el("p", { class: "about" }, "What accounts were charged, less what the answers cost. In UTC."),
    el("p", { class: "range" }, choice("Show", RANGES, days, (value) => {
      days = value;
      byDay.show();
      byGroup.show();
    }), " ", choice("by", groups, group, (value) => {
      group = value;
      byGroup.show();
    })),
    byDay,
    byGroup,
  ];
}

const costs = (row) => pico(row.cost_usd) + pico(row.failed_cost_usd);

async function marginChart(days) {
  const { data } = await call(`/admin/v1/margins?${since(days)}&bucket_width=1d`);
  if (data.length === 0) return el("p", { class: "empty" }, "Nothing was used in this time.");
  const rows = new Map(data.map((row) => [day(new Date(row.start_time * 1000)), row]));
  const labels = [...Array(Number(days)).keys()].map((back) =>
    day(new Date(daysAgo(Number(days) - 1 - back) * 1000)));
  const bars = (name, amount) => {
    const amounts = labels.map((label) => (rows.has(label) ? amount(rows.get(label)) : 0n));
    return { name, values: amounts.map(height), texts: amounts.map(usd) };
  };
  return chart({
    id: "margin-chart",
    title: "Charges and costs by day",
    kind: "bar",
    unit: "US dollars a day",
    labels,
    series: [
      bars("charged", (row) => pico(row.charge_usd)),
      bars("costs", costs),
      bars("margin", (row) => pico(row.margin_usd)),
    ],
  });
}

async function marginTable(days, group) {
  const { data } = await call(`/admin/v1/margins?${since(days)}&group_by=${group}`);
  const titles = { model: "Model", account: "Account", upstream: "Upstream" };
  const columns = [
    { name: titles[group] },
    { name: "Requests", number: true },
    { name: "Charged", number: true },
    { name: "Cost", number: true },
    { name: "Cost of failed calls", number: true },
    { name: "Margin", number: true },
    { name: "Of the charge", number: true },
    { name: "Not paid", number: true },
    { name: "Cost unknown", number: true },
  ];
  const rows = data.map((row) => [
    row.account_name ?? row.name, whole(row.num_model_requests), usd(pico(row.charge_usd)),
    usd(pico(row.cost_usd)), usd(pico(row.failed_cost_usd)), usd(pico(row.margin_usd)),
    percent(pico(row.margin_usd), pico(row.charge_usd)), usd(pico(row.shortfall_usd)),
    whole(row.requests_without_cost),
  ]);
  const shown = table(`Margins by ${group}`, columns, rows,
    { id: "margins", empty: "Nothing was used in this time." });
  const unknown = data.some((row) => row.requests_without_cost > 0);
  const why = "Where a cost is unknown nothing is taken off for it: the true margin is smaller.";
  return unknown ? [shown, el("p", { class: "empty" }, why)] : shown;
}

export function sinks() {
  const parts = [];
  const again = () => parts.forEach((part) => part.show());
  parts.push(
    section("Sinks", sinkTable, { id: "sinks" }),
    section("Parked events", () => events("parked", again), { id: "parked" }),
    section("Waiting events", () => events("waiting", again), { id: "waiting" }),
  );
  const about = "Billing events on their way to where they are told. A parked one is not sent "
    + "again until somebody says so. In UTC.";
  return [el("p", { class: "about" }, about), ...parts];
}

async function sinkTable() {
  const { data } = await call("/admin/v1/sinks");
  const columns = [
    { name: "Sink" },
    { name: "Since" },
    { name: "Waiting", number: true },
    { name: "Oldest waits for", number: true },
    { name: "Parked", number: true },
    { name: "Oldest parked" },
  ];
  return table("Sinks and what has not reached them", columns, data.map((sink) => [
    sink.until ? `${sink.name} (off)` : sink.name, time(sink.since), whole(sink.waiting),
    sink.oldest_waiting_at ? age(sink.oldest_waiting_at) : "–", whole(sink.parked),
    time(sink.oldest_parked_at),
  ]), { id: "sink-list", empty: "No sink is configured." });
}

async function events(state, again) {
  const list = await call(`/admin/v1/events?state=${state}&limit=${EVENTS_SHOWN}`);
  const columns = [
    { name: "Request" },
    { name: "Sink" },
    { name: "Kind" },
    { name: "Attempts", number: true },
    { name: state === "parked" ? "Why" : "Last refusal" },
    { name: "Made" },
    { name: "Action" },
  ];
  const action = state === "parked" ? retry : park;
  const rows = list.data.map((event) => [
    el("code", {}, event.request_id), event.sink, event.kind, whole(event.attempts),
    event.reason ?? "–", time(event.created_at), action(event, again),
  ]);
  const shown = table(`Events that are ${state}, the oldest first`, columns, rows,
    { id: `${state}-events`, empty: `No event is ${state}.` });
  return list.has_more ? [shown, el("p", { class: "empty" }, "There are more.")] : shown;
}

const path = (event) => `/admin/v1/events/${encodeURIComponent(event.id)}`;

function retry(event, again) {
  const label = `Send again: ${event.request_id} to ${event.sink}`;
  const button = el("button", { type: "button", "aria-label": label, click: async () => {
    button.disabled = true;
    try {
      await call(`${path(event)}/retry`, { method: "POST" });
      say("The event waits again.");
      again();
    } catch (error) {
      say(error.message);
      button.disabled = false;
    }
  } }, "Send again");
  return button;
}

function park(event, again) {
  const label = `Park ${event.request_id} for ${event.sink}`;
  const hint = "For those who look at it later.";
  const click = () => ask("Park this event?", [
    el("p", {}, `It is not sent to ${event.sink} until somebody sends it again.`),
    field("Reason", { name: "reason", required: true, maxlength: 500 }, hint),
  ], "Park it", async (data) => {
    const body = { reason: data.get("reason").trim() };
    await call(`${path(event)}/park`, { method: "POST", body });
    say("The event is parked.");
    again();
  });
  return el("button", { type: "button", "aria-label": label, click }, "Park");
}

export function drift() {
  let days = "7";
  const list = section("By model", () => driftTable(days), { id: "drift" });
  const about = "What upstreams say was generated, beside our own count of the same answers. "
    + "Reasoning that can be seen is counted, and unseen reasoning is not: the count differs only "
    + "where it is below the tokens without reasoning, or above all of them.";
  return [
    el("p", { class: "about" }, about),
    el("p", { class: "range" }, choice("Show", RANGES, days, (value) => {
      days = value;
      list.show();
    })),
    list,
  ];
}

async function driftTable(days) {
  const { data } = await call(`/admin/v1/drift?${since(days)}`);
  const columns = [
    { name: "Model" },
    { name: "Upstream" },
    { name: "Answers", number: true },
    { name: "That differ", number: true },
    { name: "Tokens out", number: true },
    { name: "Of these reasoning", number: true },
    { name: "Counted", number: true },
    { name: "Difference", number: true },
  ];
  const rows = data.map((row) => [
    row.model, row.upstream, whole(row.requests), whole(row.different),
    whole(row.completion_tokens), whole(row.reasoning_tokens),
    whole(row.counted_completion_tokens), difference(row),
  ]);
  return table("Upstreams' tokens and our count", columns, rows,
    { id: "drift-list", empty: "There was no answer with both numbers in this time." });
}

// How far the count is from the nearer end of what it may be, in percent of that; else zero.
function difference(row) {
  const most = BigInt(row.completion_tokens);
  const least = most - BigInt(row.reasoning_tokens);
  const counted = BigInt(row.counted_completion_tokens);
  if (counted < least) return percent(counted - least, least);
  if (counted > most) return percent(counted - most, most);
  return percent(0n, most);
}

const STATES = { well: "well", on_trial: "on trial", left_alone: "left alone" };

export function health() {
  return [section("This process", async () => {
    const said = await call("/admin/v1/health");
    const manner = ({ state, seconds }) =>
      (seconds === null ? STATES[state] : `${STATES[state]} for ${seconds} s`);
    const columns = [
      { name: "Upstream" },
      { name: "Kind" },
      { name: "Order", number: true },
      { name: "Weight", number: true },
      { name: "State" },
      { name: "Models in trouble" },
    ];
    const rows = said.upstreams.map((it) => {
      const named = it.models.map((model) => `${model.model} (${manner(model)})`);
      const more = it.models_in_trouble - named.length;
      if (more > 0) named.push(`${more} more`);
      return [it.name, it.kind, whole(it.order), whole(it.weight), manner(it),
        named.join(", ") || "none"];
    });
    return [
      el("dl", { class: "tiles" },
        el("div", { class: "tile" }, el("dt", {}, "Readiness"),
          el("dd", { id: "readiness" }, said.status)),
        el("div", { class: "tile" }, el("dt", {}, "Version"), el("dd", {}, said.version))),
      table("Upstreams, as this process has found them of late", columns, rows,
        { id: "upstreams" }),
      el("p", { class: "hint" }, `Process ${said.instance}. Others learn by themselves.`),
    ];
  }, { id: "process" })];
}
