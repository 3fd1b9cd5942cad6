// The page of the bridge: how the fleet is, once a second, and a chat with it.
// Whatever comes from the fleet or a model is put in as text, never as HTML. The key stays in this tab's storage.

const $ = (id) => document.getElementById(id);
const slot = (element, name) => element.querySelector(`[data-is="${name}"]`);
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });

/** Show a text; what is shown already is left alone, so that selections and screen readers keep their place. */
function show(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function fill(element, texts) {
  for (const [name, text] of Object.entries(texts)) show(slot(element, name), String(text));
}

function tone(element, text, name) {
  show(element, text);
  element.dataset.tone = name;
}

/** Make a list show items: elements are kept by key, new ones made from a template, the rest removed. */
function list(parent, items, keyOf, template, update) {
  const before = new Map([...parent.children].map((element) => [element.dataset.key, element]));
  items.forEach((item, at) => {
    const element = before.get(keyOf(item)) ?? $(template).content.firstElementChild.cloneNode(true);
    before.delete(keyOf(item));
    element.dataset.key = keyOf(item);
    if (parent.children[at] !== element) parent.insertBefore(element, parent.children[at] ?? null);
    update(element, item);
  });
  for (const element of before.values()) element.remove();
}

function span(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
}

const rate = (perSecond) => (perSecond === undefined ? "–" : number.format(perSecond < 100 ? perSecond : Math.round(perSecond)));
const count = (n, noun) => `${number.format(n)} ${noun}${n === 1 ? "" : "s"}`;
const byName = (key) => (a, b) => a[key].localeCompare(b[key], "en", { numeric: true });

// --- the bridge -----------------------------------------------------------------------------------------------------

const KEY = "zmqrt-key";
class KeyNeeded extends Error {}

/** Ask the bridge something. Throws KeyNeeded after it has asked the reader for a key. */
async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status !== 401) return answer;
  if (key === sessionStorage.getItem(KEY)) askForKey(key ? "The bridge did not accept that key." : "");
  throw new KeyNeeded("this bridge asks for a key");
}

/** What a refusal says: in the words of the OpenAI paths, or of ours. */
async function reason(answer) {
  const body = await answer.json().catch(() => ({}));
  const detail = body.error?.message ?? body.detail;
  return (typeof detail === "string" && detail) || `the bridge answered ${answer.status}`;
}

function askForKey(why) {
  sessionStorage.removeItem(KEY);
  tone($("state"), "key needed", "warn");
  if (why) show($("key-why"), why);
  $("key").hidden = false;
  if (!$("ask-key").open) $("ask-key").showModal();
}

$("key").addEventListener("click", () => $("ask-key").showModal());
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key-text").value.trim());
  $("key-text").value = "";
  $("ask-key").close();
  poll();
});

// --- the fleet ------------------------------------------------------------------------------------------------------

const EVERY_MS = 1000;
const LONGEST_MS = 15000;
const PATIENCE_MS = 5000;
const STALE_S = 4; // the bridge has asked the broker several times by then
const GONE_MS = 60000; // so long a node that has left is still shown: one that vanishes in a blink explains nothing
const HEALTH = { active: "good", suspect: "warn", draining: "warn", left: "", lost: "bad", evicted: "bad", gone: "bad" };
const SETTLED = ["ready", "draining", "failed"];
const seen = new Map(); // worker_uuid -> the node as last told, and when
let failures = 0;
let timer = 0;
let isAsking = false;

/** Ask for the status while somebody looks; less and less often while that fails, and not at all without a key. */
async function poll() {
  clearTimeout(timer);
  if (document.hidden || isAsking) return;
  isAsking = true;
  try {
    const answer = await ask("status", { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (answer.ok) {
      showFleet(await answer.json());
      failures = 0;
    } else {
      failures += 1;
      trouble(answer.status === 503 ? "broker unreachable" : "error", await reason(answer));
    }
  } catch (error) {
    if (!(error instanceof KeyNeeded)) {
      failures += 1;
      trouble("bridge unreachable", "The bridge does not answer; trying again.");
    } else if (!sessionStorage.getItem(KEY)) return; // else a new key came while the old one was refused
  } finally {
    isAsking = false;
  }
  timer = setTimeout(poll, failures ? Math.min(LONGEST_MS, EVERY_MS * 2 ** failures) : EVERY_MS);
}

/** Say why there is no news. What was known last stays, and looks like it. */
function trouble(state, text) {
  tone($("state"), state, "bad");
  show($("problem"), text);
  $("problem").hidden = false;
  $("fleet").classList.add("stale");
}

function showFleet(status) {
  if (status.age_s > STALE_S) trouble("broker silent", "The broker has stopped answering. Below is what it said last.");
  else {
    $("problem").hidden = true;
    $("fleet").classList.remove("stale");
    if (status.draining) tone($("state"), "draining", "warn");
    else tone($("state"), status.ready ? "ready" : "not ready", status.ready ? "good" : "warn");
  }
  const rates = Object.values(status.tokens_per_s).flatMap((devices) => Object.values(devices));
  const ready = status.nodes.filter((node) => node.health === "active" && node.phase === "ready").length;
  fill($("totals"), {
    nodes: ready === status.nodes.length ? ready : `${ready} of ${status.nodes.length}`,
    running: number.format(status.running),
    queued: number.format(status.queued),
    pace: rate(rates.length ? rates.reduce((sum, one) => sum + one) : undefined),
    clients: number.format(status.clients),
    up: span(status.uptime_s).replace(/^(.*(?:min|h)) .*$/, "$1"),
  });
  const nodes = withGone(status.nodes).sort(byName("node_id"));
  $("no-nodes").hidden = nodes.length > 0;
  $("no-models").hidden = status.services.length > 0;
  list($("nodes"), nodes, (node) => node.worker_uuid, "node", (element, node) =>
    showNode(element, node, status.tokens_per_s[node.worker_uuid] ?? {}),
  );
  list($("models"), status.services.sort(byName("service")), (service) => service.service, "service", showService);
  offerModels(status.services.filter((service) => service.task === "generate" && service.is_listed).map((service) => service.service));
}

/** Add the nodes that the broker has forgotten lately, unless they are back. */
function withGone(nodes) {
  const now = Date.now();
  const here = new Set(nodes.map((node) => node.node_id));
  for (const node of nodes) seen.set(node.worker_uuid, { node, at: now });
  for (const [uuid, { node, at }] of seen) {
    if (at < now - GONE_MS || (at < now && here.has(node.node_id))) seen.delete(uuid);
  }
  return [...seen.values()].map(({ node, at }) => {
    if (at === now) return node;
    const age = node.heartbeat_age_s + (now - at) / 1000;
    const health = node.health === "draining" ? "left" : "gone";
    return { ...node, health, heartbeat_age_s: age, in_flight: 0, devices: [] };
  });
}

function showNode(element, node, rates) {
  const isGone = node.health === "gone" || node.health === "left";
  fill(element, {
    name: node.node_id,
    age: span(node.heartbeat_age_s),
    load: `${node.in_flight} / ${node.capacity}`,
    done: `${number.format(node.completed)} done${node.failed ? `, ${number.format(node.failed)} failed` : ""}`,
    serves: node.services.join(", "),
  });
  tone(slot(element, "health"), node.health, HEALTH[node.health] ?? "warn");
  element.toggleAttribute("data-gone", isGone);
  slot(element, "use").hidden = isGone;
  const meter = element.querySelector(".load");
  meter.setAttribute("aria-label", `load of ${node.node_id}`);
  meter.setAttribute("aria-valuemax", node.capacity);
  meter.setAttribute("aria-valuenow", node.in_flight);
  meter.firstElementChild.style.width = `${100 * Math.min(1, node.in_flight / (node.capacity || 1))}%`;
  const devices = node.devices.length || isGone ? node.devices : [{ ...node, id: "node", kind: "", name: "" }];
  list(element.querySelector(".devices"), devices, (device) => device.id, "device", (row, device) =>
    showDevice(row, device, rates[device.id]),
  );
}

function showDevice(element, device, pace) {
  const isSettled = SETTLED.includes(device.phase);
  const fallback = device.fallback ? ", on a fallback" : "";
  const restarts = device.restarts ? `, ${count(device.restarts, "restart")}` : "";
  const memory = device.memory_bytes ? `${number.format(device.memory_bytes / 2 ** 30)} GiB` : "";
  fill(element, {
    device: device.id,
    kind: [device.name || device.kind, memory].filter(Boolean).join(", "),
    phase: (isSettled ? device.phase : `${device.phase} ${device.percent} %, ${span(device.elapsed_s)}`) + restarts + fallback,
    pace: rate(pace),
    running: `${device.running ?? 0} / ${device.capacity}`,
    waiting: short.format(device.waiting ?? 0),
    kv: `${device.kv_percent ?? 0} %`,
    tokens: short.format(device.tokens ?? 0),
  });
  slot(element, "kind").title = slot(element, "kind").textContent;
  slot(element, "phase").title = device.fallback ?? "";
  const progress = element.querySelector("progress");
  progress.hidden = isSettled;
  progress.value = device.percent;
  progress.setAttribute("aria-label", `${device.phase} ${device.id}`);
  element.querySelector("dl").hidden = !isSettled;
}

function showService(element, service) {
  fill(element, {
    name: service.service,
    task: service.task,
    nodes: service.nodes,
    running: `${number.format(service.running)} / ${number.format(service.capacity)}`,
    queued: number.format(service.queued),
    context: service.context ? count(service.context, "token") : "–",
  });
}

function offerModels(names) {
  const select = $("model");
  if ([...select.options].map((option) => option.value).join("\n") === names.join("\n")) return;
  const chosen = select.value;
  select.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(chosen)) select.value = chosen;
}

// --- the chat -------------------------------------------------------------------------------------------------------

const EXAMPLE = {
  type: "function",
  function: {
    name: "weather",
    description: "Tells how the weather is in a city.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

let turns = [];
let running = null; // the AbortController of the answer that is being made
let called = null; // the newest answer's turn and its calls, as long as nothing was returned for them

function addTurn(role, text) {
  const element = $("turn").content.firstElementChild.cloneNode(true);
  element.classList.add(role);
  fill(element, { who: role === "user" ? "You" : $("model").value, said: text });
  $("hint").hidden = true;
  $("log").append(element);
  $("log").scrollTop = $("log").scrollHeight;
  return element;
}

/** Read a field that holds JSON, or nothing. Throws what is wrong with it, after it was shown. */
function json(id, what) {
  $(id).removeAttribute("aria-invalid");
  const text = $(id).value.trim();
  if (!text) return undefined;
  try {
    return JSON.parse(text);
  } catch (error) {
    $("more").open = true;
    $(id).setAttribute("aria-invalid", "true");
    $(id).focus();
    throw new Error(`${what}: ${error.message}`);
  }
}

/** What a request says of tools and of a schema; tools may be written without what OpenAI puts around them. */
function extras() {
  const [tools, schema] = [json("tools", "Tools"), json("schema", "Schema")];
  const list = tools === undefined ? [] : [tools].flat();
  return {
    ...(list.length && { tools: list.map((tool) => (tool?.function ? tool : { type: "function", function: tool })) }),
    ...(schema !== undefined && { response_format: { type: "json_schema", json_schema: { name: "answer", schema } } }),
  };
}

/** Yield the data of each server-sent event. Comments, which keep the connection alive, have none. */
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
    }
  }
}

/** Ask for an answer and hand each piece on as it comes; return how it ended. */
async function answer(request, signal, onPiece) {
  const reply = await ask("v1/chat/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  if (!reply.ok) throw new Error(await reason(reply));
  const end = { finish: "", tokens: 0 };
  for await (const data of events(reply)) {
    if (data === "[DONE]") return end;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    const choice = chunk.choices?.[0];
    const { content, reasoning_content: thought, tool_calls: calls } = choice?.delta ?? {};
    if (content || thought || calls?.length) onPiece({ content, thought, calls });
    end.finish = choice?.finish_reason ?? end.finish;
    end.tokens = chunk.usage?.completion_tokens ?? end.tokens;
  }
  throw new Error("the connection ended before the answer did");
}

/** Tell what was measured here: with the way through network, bridge and broker. */
function timing(sent, first, end) {
  const parts = [];
  if (first) parts.push(`first token ${Math.round(first - sent)} ms`);
  const later = end.tokens - 1;
  if (first && later > 0) parts.push(`${number.format((performance.now() - first) / later)} ms per token`);
  if (end.tokens) parts.push(count(end.tokens, "token"));
  if (end.finish === "length") parts.push("cut off at max tokens");
  return parts;
}

/** Returns what shows the parts of an answer in its turn, each apart, and what is left of them for the next request. */
function partsOf(element) {
  const said = slot(element, "said").appendChild(document.createTextNode(""));
  const thought = slot(element, "thought").appendChild(document.createTextNode(""));
  const calls = [];
  const show = (piece) => {
    if (piece.thought) {
      slot(element, "thoughts").hidden = false;
      if (!thought.data) slot(element, "thoughts").open = true;
      thought.appendData(piece.thought);
    }
    if (piece.content) said.appendData(piece.content);
    for (const call of piece.calls ?? []) {
      calls.push({ id: call.id, type: "function", function: call.function });
      showCall(element, call.function);
    }
  };
  return { show, said, calls };
}

function showCall(element, { name, arguments: text }) {
  const card = $("call").content.firstElementChild.cloneNode(true);
  let pretty = text;
  try {
    pretty = JSON.stringify(JSON.parse(text), null, 2);
  } catch {} // an answer that was cut off
  fill(card, { name, arguments: pretty });
  slot(card, "returned").setAttribute("aria-label", `What ${name} returned`);
  slot(element, "calls").append(card);
  slot(element, "calls").hidden = false;
}

/** What the reader says that the newest calls returned, as turns; templates choke on calls without them. */
function returned() {
  const fields = called ? [...called.element.querySelectorAll('[data-is="returned"]')] : [];
  return fields.map((field, at) => ({ role: "tool", tool_call_id: called.calls[at].id, content: field.value }));
}

/** Let the fields below calls be written, or not: while an answer to them is made, and after it. */
function offerReturn({ element, calls }, isOffered) {
  slot(element, "return").hidden = !isOffered || !calls.length;
  for (const field of element.querySelectorAll('[data-is="returned"]')) field.readOnly = !isOffered;
}

/** Ask with what is new in the conversation; `more`: tools and schema; `giveBack`: what to do if nothing came of it. */
async function goOn(news, more, giveBack) {
  const sent = performance.now();
  let first = 0;
  const before = called;
  if (before) offerReturn(before, false);
  const element = addTurn("assistant", "");
  const parts = partsOf(element);
  const request = {
    model: $("model").value,
    messages: [...turns, ...news],
    max_tokens: $("max-tokens").valueAsNumber,
    temperature: $("temperature").valueAsNumber,
    ...more,
  };
  running = new AbortController();
  const { signal } = running;
  busy(element, true);
  let notes = [];
  try {
    const end = await answer(request, signal, (piece) => {
      first ||= performance.now();
      const log = $("log");
      const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      parts.show(piece);
      if (isAtEnd) log.scrollTop = log.scrollHeight;
    });
    notes = timing(sent, first, end);
  } catch (error) {
    notes = timing(sent, first, {});
    notes.unshift(signal.aborted ? "stopped" : error.message);
    element.classList.toggle("failed", !signal.aborted);
  }
  const { said, calls } = parts;
  // An answer that was cut short counts as far as it went; one that never began takes its question back.
  if (element.isConnected && (said.data || calls.length)) {
    turns.push(...news, { role: "assistant", content: said.data, ...(calls.length && { tool_calls: calls }) });
    called = calls.length ? { element, calls } : null;
    offerReturn({ element, calls }, true);
  } else if (element.isConnected) {
    if (before) offerReturn(before, true);
    giveBack();
  }
  slot(element, "note").hidden = false;
  show(slot(element, "note"), notes.join(" · "));
  running = null;
  busy(element, false);
  show($("doing"), signal.aborted ? "stopped" : element.classList.contains("failed") ? "failed" : "answered");
}

function send(text, more) {
  const news = [...returned(), { role: "user", content: text }];
  addTurn("user", text);
  goOn(news, more, () => {
    if (!$("text").value) $("text").value = text;
  });
}

/** Read the fields of tools and schema; undefined after it was told what is wrong with them. */
function readExtras() {
  try {
    $("more-problem").hidden = true;
    return extras();
  } catch (error) {
    show($("more-problem"), error.message);
    $("more-problem").hidden = false;
    return undefined;
  }
}

function busy(element, isBusy) {
  element.classList.toggle("running", isBusy);
  element.setAttribute("aria-busy", String(isBusy));
  $("send").disabled = isBusy;
  $("stop").disabled = !isBusy;
  if (isBusy) show($("doing"), "answering…");
}

$("chat").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (running || !text) return;
  const more = readExtras();
  if (!more) return;
  $("text").value = "";
  $("text").focus();
  send(text, more);
});
$("text").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) $("chat").requestSubmit();
});
$("play").addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
$("log").addEventListener("click", (event) => {
  if (!event.target.matches('[data-is="return"]') || running) return;
  const more = readExtras();
  if (more) goOn(returned(), more, () => {});
});
$("example").addEventListener("click", () => {
  $("tools").value = JSON.stringify([EXAMPLE], null, 1);
});
$("stop").addEventListener("click", () => {
  running?.abort();
  $("text").focus();
});
$("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  called = null;
  for (const element of $("log").querySelectorAll(".turn")) element.remove();
  $("hint").hidden = false;
  show($("doing"), "");
  $("text").focus();
});

// --- clients for bare machines ----------------------------------------------------------------------------------------

const here = location.origin;
const downloads = {
  shell: `curl -O ${here}/client.sh; ZMQRT_URL=${here} sh client.sh "Hello"`,
  powershell: `iwr ${here}/client.ps1 -OutFile client.ps1; powershell -ExecutionPolicy Bypass -File client.ps1 -Url ${here} "Hello"`,
};
for (const [kind, command] of Object.entries(downloads)) show($("bare").querySelector(`[data-is="${kind}"]`), command);

// --- light and dark -------------------------------------------------------------------------------------------------

const THEME = "zmqrt-theme";
const system = matchMedia("(prefers-color-scheme: dark)");

const isDark = () => (localStorage.getItem(THEME) ?? (system.matches ? "dark" : "light")) === "dark";

function showTheme() {
  const chosen = localStorage.getItem(THEME);
  if (chosen) document.documentElement.dataset.theme = chosen;
  $("theme").setAttribute("aria-pressed", String(isDark()));
}

$("theme").addEventListener("click", () => {
  localStorage.setItem(THEME, isDark() ? "light" : "dark");
  showTheme();
});
system.addEventListener("change", showTheme);
document.addEventListener("visibilitychange", poll);
showTheme();
poll();
