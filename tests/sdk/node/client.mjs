// One scenario of one JavaScript client; prints what it saw as JSON. The Python tests start it and
// hold what it says against the books.
//
//   node client.mjs CLIENT SCENARIO MODEL      with BASE_URL, API_KEY and RETRIES set
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, jsonSchema, Output, streamText, tool } from "ai";
import OpenAI, { APIError } from "openai";

const [client, scenario, model] = process.argv.slice(2);
const { BASE_URL: baseURL, API_KEY: apiKey } = process.env;
const maxRetries = Number(process.env.RETRIES ?? 0);
const messages = [{ role: "user", content: "hi there you" }];
const city = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

// What really leaves.
let attempts = 0;
const counting = (url, options) => {
  attempts += 1;
  return fetch(url, options);
};

// === OpenAI's SDK ===

const openai = new OpenAI({ baseURL, apiKey, maxRetries, fetch: counting });
const create = (more, options) => openai.chat.completions.create({ model, messages, ...more }, options);
const functionTool = { type: "function", function: { name: "weather", parameters: city } };

const openaiScenarios = {
  async plain() {
    const { data, response } = await create({}).withResponse();
    return { text: data.choices[0].message.content, usage: data.usage, id: response.headers.get("x-request-id") };
  },
  async stream() {
    const stream = await create({ stream: true, stream_options: { include_usage: true } });
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    const text = chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");
    return { text, usage: chunks.at(-1).usage };
  },
  async tools() {
    const runner = openai.chat.completions.stream({ model, messages, tools: [functionTool] });
    const answer = await runner.finalChatCompletion();
    return { calls: answer.choices[0].message.tool_calls.map((call) => call.function) };
  },
  async structured() {
    const format = { type: "json_schema", json_schema: { name: "city", strict: true, schema: city } };
    const answer = await openai.chat.completions.parse({ model, messages, response_format: format });
    return { parsed: answer.choices[0].message.parsed };
  },
  async probabilities() {
    const stream = await create({ stream: true, logprobs: true });
    const tokens = [];
    for await (const chunk of stream) {
      for (const choice of chunk.choices) tokens.push(...(choice.logprobs?.content ?? []));
    }
    return { tokens: tokens.map((one) => one.token) };
  },
  async choices() {
    const texts = ["", ""];
    for await (const chunk of await create({ stream: true, n: 2 })) {
      for (const { index, delta } of chunk.choices) texts[index] += delta.content ?? "";
    }
    return { texts };
  },
  async raw() {
    const answer = await create({ stream: true }).asResponse();
    const id = answer.headers.get("x-request-id");
    const lines = (await answer.text()).split("\n").filter((line) => line.startsWith("data:"));
    return { id, type: answer.headers.get("content-type"), first: lines[0], last: lines.at(-1) };
  },
  async abort() {
    const stop = new AbortController();
    const stream = await create({ stream: true }, { signal: stop.signal });
    for await (const chunk of stream) {
      stop.abort();
      return { first: chunk.choices[0].delta.content };
    }
  },
  async models() {
    const names = [];
    for await (const one of openai.models.list()) names.push(one.id);
    return { names, one: (await openai.models.retrieve(model)).id };
  },
};

// === Vercel's AI SDK ===

const provider = createOpenAICompatible({
  name: "tollgate", baseURL, apiKey, fetch: counting, includeUsage: true, supportsStructuredOutputs: true,
});
const ask = (more) => ({ model: provider(model), prompt: messages[0].content, maxRetries, ...more });
const usageOf = ({ inputTokens, outputTokens }) => ({
  prompt_tokens: inputTokens, completion_tokens: outputTokens,
});

const vercelScenarios = {
  async plain() {
    const { text, usage } = await generateText(ask({}));
    return { text, usage: usageOf(usage) };
  },
  async stream() {
    let failure;
    const stream = streamText(ask({ onError: ({ error }) => (failure = error) }));
    let text = "";
    for await (const piece of stream.textStream) text += piece;
    if (failure) throw failure;
    return { text, usage: usageOf(await stream.usage) };
  },
  async tools() {
    const tools = { weather: tool({ inputSchema: jsonSchema(city) }) };
    const stream = streamText(ask({ tools }));
    const calls = (await stream.toolCalls).map((call) => ({
      name: call.toolName, arguments: JSON.stringify(call.input),
    }));
    return { calls };
  },
  async structured() {
    const { output } = await generateText(ask({ output: Output.object({ schema: jsonSchema(city) }) }));
    return { parsed: output };
  },
  async abort() {
    const stop = new AbortController();
    const stream = streamText(ask({ abortSignal: stop.signal, onError() {} }));
    for await (const piece of stream.textStream) {
      stop.abort();
      return { first: piece };
    }
  },
};

// === errors, as each of them raises them ===

function failed(error) {
  if (APIError.prototype.isPrototypeOf(error)) {
    const { status, code, type, param, requestID, message } = error;
    return { error: error.constructor.name, status, code, type, param, requestID, message };
  }
  const last = error.lastError ?? error;
  if (APICallError.isInstance(last)) {
    return { error: "APICallError", status: last.statusCode, retryable: last.isRetryable, message: last.message };
  }
  return { error: error.name ?? "error", message: String(error.message ?? error) };
}

const scenarios = client === "openai" ? openaiScenarios : vercelScenarios;
const seen = await scenarios[scenario]().catch(failed);
console.log(JSON.stringify({ ...seen, attempts }));
