// The account: what there is, what was spent by day and model, how fast answers came, and what is
// under way.

import { call } from "./api.js";
import { chart } from "./charts.js";
import { age, ask, choice, day, daysAgo, el, field, section, table, time } from "./dom.js";
import { centsTyped, height, pico, picoOfCents, sum, usd, whole } from "./exact.js";

const RANGES = [["7", "7 days"], ["30", "30 days"]];
// Models that have a colour of their own; the others are one.
const MODELS_SHOWN = 6;
// What is under way is asked for again after so long, while somebody looks.
const LIVE_MS = 5_000;

export function account({ me, config, signal }) {
  let days = "7";
  const query = () => `start_time=${daysAgo(Number(days) - 1)}&limit=${days}`;
  const spend = section("Spending", () => spending(query()), { id: "spending" });
  const speed = section("Latency", () => latency(query()), { id: "latency" });
  const range = choice("Show", RANGES, days, (value) => {
    days = value;
    spend.show();
    speed.show();
  });
  const now = section("Under way", underWay, { id: "live" });
  const again = () => {
    if (signal.aborted) return;
    // Not under somebody's hands, not again and again into a failure, and not into an answer that
    // is still to come.
    const isLeft = !now.contains(document.activeElement)
      && !now.querySelector(".error, [aria-busy=true]");
    if (isLeft && !document.hidden) now.show();
    setTimeout(again, LIVE_MS);
  };
  setTimeout(again, LIVE_MS);
  return [
    el("p", { class: "about" }, `${me.name} · ${me.kind} · all times are in UTC`),
    section("Money", async () => money(await call("/v1/account"), config), { id: "money" }),
    now,
    el("p", { class: "range" }, range),
    spend,
    speed,
  ];
}

const tile = (id, name, text, hint) => el("div", { class: "tile" },
  el("dt", {}, name), el("dd", { id }, text), hint ? el("dd", { class: "hint" }, hint) : null);

function money(own, config) {
  const amount = (text) => usd(pico(text));
  const isPostpaid = own.kind === "postpaid";
  const limit = own.limit_usd === null ? "no limit" : amount(own.limit_usd);
  const parts = [
    own.status === "active" ? null : el("p", { class: "error" }, "This account is suspended."),
    el("dl", { class: "tiles" },
      tile("available", "Available", own.available_usd === null ? "no limit"
        : amount(own.available_usd), "what the next request can use"),
      tile("balance", "Balance", amount(own.balance_usd), "credits less charges, of all time"),
      tile("held", "Set aside", amount(own.held_usd), "for requests under way"),
      tile("month", "This month", amount(own.charged_this_month_usd),
        isPostpaid ? `of ${limit}` : "charged so far")),
  ];
  if (!config.topup_cents) return parts.filter(Boolean);
  if (!own.caller.is_owner) {
    const how = "Only the account's owner can pay. Sign in as one to top up.";
    return [...parts.filter(Boolean), el("p", { class: "empty" }, how)];
  }
  return [...parts.filter(Boolean), el("p", { class: "actions" },
    isPostpaid ? null : el("button", { type: "button", class: "primary",
      click: () => topUp(config.topup_cents) }, "Top up"),
    el("button", { type: "button", click: () => portal() }, "Invoices and cards"))];
}

function topUp({ least, most }) {
  const range = `from ${usd(picoOfCents(least))} to ${usd(picoOfCents(most))}`;
  const hint = `In US dollars, ${range}. The payment page is Stripe's; taxes may come on top.`;
  ask("Top up", field("Amount", { name: "amount", required: true, inputmode: "decimal" }, hint),
    "To the payment page", async (data) => {
      const amount_cents = centsTyped(data.get("amount"));
      if (amount_cents === undefined) throw new Error("Please give an amount like 25 or 25.50.");
      if (amount_cents < least || amount_cents > most) {
        throw new Error(`Please give an amount ${range}.`);
      }
      go(await call("/v1/billing/checkout", { method: "POST", body: { amount_cents } }));
    });
}

async function portal() {
  ask("Invoices and cards", el("p", {}, "They are on a page of Stripe's."), "Go there",
    async () => go(await call("/v1/billing/portal", { method: "POST", body: {} })));
}

function go({ url }) {
  if (!/^https?:$/.test(new URL(url).protocol)) throw new Error("This is no payment page.");
  location.assign(url);
}

async function spending(query) {
  const [costs, usage] = await Promise.all([
    call(`/v1/organization/costs?${query}&group_by=line_item`),
    call(`/v1/organization/usage/completions?${query}&group_by=model`),
  ]);
  const buckets = costs.data.map(({ start_time, results }) => {
    const amounts = results.map(({ line_item, amount }) => [line_item, pico(amount.value)]);
    return { day: day(new Date(start_time * 1000)), amounts: new Map(amounts) };
  });
  const totals = new Map();
  for (const { amounts } of buckets) {
    for (const [item, amount] of amounts) totals.set(item, (totals.get(item) ?? 0n) + amount);
  }
  const total = sum([...totals.values()]);
  const said = el("p", { class: "sum" }, "Spent in this time: ",
    el("strong", { id: "spent" }, usd(total)));
  if (totals.size === 0) {
    return [said, el("p", { class: "empty" }, "Nothing was used in this time.")];
  }
  return [said, spendChart(buckets, totals), byModel(usage, totals)];
}

function spendChart(buckets, totals) {
  const items = [...totals].sort(([, one], [, other]) => (one < other ? 1 : -1));
  const named = items.slice(0, MODELS_SHOWN).map(([item]) => item);
  const others = items.slice(MODELS_SHOWN).map(([item]) => item);
  const series = named.map((name) => ({ name, of: [name] }));
  if (others.length > 0) series.push({ name: `${others.length} others`, of: others });
  return chart({
    id: "spend-chart",
    title: "Spending by day and model",
    kind: "bar",
    unit: "US dollars a day",
    stacked: true,
    labels: buckets.map((bucket) => bucket.day),
    series: series.map(({ name, of }) => {
      const amounts = buckets.map(({ amounts }) => sum(of.map((item) => amounts.get(item) ?? 0n)));
      return { name, values: amounts.map(height), texts: amounts.map(usd) };
    }),
  });
}

function byModel(usage, totals) {
  const rows = new Map([...totals].map(([item, amount]) => [item, { amount, used: [0, 0, 0] }]));
  for (const result of usage.data.flatMap(({ results }) => results)) {
    const row = rows.get(result.model) ?? { amount: 0n, used: [0, 0, 0] };
    const more = [result.num_model_requests, result.input_tokens, result.output_tokens];
    row.used = row.used.map((number, at) => number + more[at]);
    rows.set(result.model, row);
  }
  const sorted = [...rows].sort(([, one], [, other]) => (one.amount < other.amount ? 1 : -1));
  const columns = [
    { name: "Model" },
    { name: "Requests", number: true },
    { name: "Tokens in", number: true },
    { name: "Tokens out", number: true },
    { name: "Charged", number: true },
  ];
  return table("By model, in this time", columns,
    sorted.map(([name, { used, amount }]) => [name, ...used.map(whole), usd(amount)]),
    { id: "by-model" });
}

async function latency(query) {
  const page = await call(`/v1/latency?${query}`);
  if (page.data.every(({ results }) => results.length === 0)) {
    return el("p", { class: "empty" }, "Nothing was used in this time.");
  }
  const line = (name, timing, member) => {
    const values = page.data.map(({ results }) =>
      results.find((result) => result.timing === timing)?.[member] ?? null);
    return { name, values, texts: values.map((it) => (it === null ? "–" : `${whole(it)} ms`)) };
  };
  const lines = [
    line("whole answer, half", "whole", "p50_ms"),
    line("whole answer, 95 of 100", "whole", "p95_ms"),
    line("first byte, half", "first_byte", "p50_ms"),
    line("first byte, 95 of 100", "first_byte", "p95_ms"),
  ];
  return [
    el("p", { class: "sum" }, "How long answers took, and "
      + "streams to their first byte: half of them, and 95 of 100, no longer."),
    chart({
      id: "latency-chart",
      title: "Latency by day",
      kind: "line",
      unit: "milliseconds",
      labels: page.data.map(({ start_time }) => day(new Date(start_time * 1000))),
      series: lines.filter(({ values }) => values.some((value) => value !== null)),
    }),
  ];
}

async function underWay() {
  const holds = await call("/v1/holds");
  const columns = [
    { name: "Model" },
    { name: "Since (UTC)" },
    { name: "For", number: true },
    { name: "Streamed" },
    { name: "Set aside", number: true },
  ];
  const rows = holds.data.map((hold) => [
    hold.model, time(hold.placed_at), age(hold.placed_at), hold.streamed ? "yes" : "no",
    usd(pico(hold.amount_usd)),
  ]);
  const shown = table("Requests under way", columns, rows,
    { id: "live-requests", empty: "No request is under way." });
  return holds.has_more ? [shown, el("p", { class: "empty" }, "There are more.")] : shown;
}
