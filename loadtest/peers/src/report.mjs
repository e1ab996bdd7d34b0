// From runs to ratios. A ratio is how many times better Everthread is than a peer in the same round: above 1 it is ahead, below 1
// behind, whether more or less of the figure is better.

const at = (path) => (run) => path.split(".").reduce((value, name) => value?.[name], run);
const more = (title, path) => ({ title, of: at(path), isMoreBetter: true });
const less = (title, path) => ({ title, of: at(path), isMoreBetter: false });

const STREAM = [
  more("deliveries per CPU-second of the server", "rates.deliveries_per_cpu_s"),
  more("deliveries per CPU-second of server and store", "rates.deliveries_per_cpu_s_with_store"),
  less("due → follower, p50", "latency_ms.delivery.p50_ms"),
  less("due → follower, p99", "latency_ms.delivery.p99_ms"),
  less("due → receipt, p50", "latency_ms.ack.p50_ms"),
  less("bytes per delivery", "figures.bytes_per_delivery"),
];

/** What is compared, by work. */
export const LINES = {
  tokens: STREAM,
  fanout: STREAM,
  idle: [
    less("memory per connection", "figures.bytes_per_connection"),
    less("CPU to open a connection", "figures.cpu_ms_per_opening"),
    less("CPU to hold a connection", "figures.cpu_us_per_connection_s"),
  ],
  join: [
    less("whole history, p50", "latency_ms.join.p50_ms"),
    less("whole history, p90", "latency_ms.join.p90_ms"),
    less("CPU per join, server and store", "figures.cpu_ms_per_join_with_store"),
    less("bytes per join", "figures.bytes_per_join"),
  ],
  storm: [
    less("until all are live again", "figures.all_live_ms"),
    less("until one is, p50", "latency_ms.live.p50_ms"),
    less("CPU per return, server and store", "figures.cpu_ms_per_return_with_store"),
  ],
};

/** How busy a core may be before what is measured is the wait for it. */
const FULL_CORES = 0.9;
/** In a shorter stretch everything is busy. */
const STEADY_S = 1;
/** A server that delivers less than this part of what is written is behind, and falls back further. */
const KEEPS_UP = 0.8;

/** What a reader must know to read a run's figures. */
export function notes({ window_s, processes = {}, rates = {}, params = {} }) {
  const found = [];
  const asked = rates.tokens_sent_per_s * params.followers_per_session;
  if (rates.deliveries_per_s < asked * KEEPS_UP) found.push(`did not keep up: ${rates.deliveries_per_s} of ${asked} deliveries per second`);
  if (window_s < STEADY_S) return found;
  if (processes.loadtest?.cpu_cores > FULL_CORES) found.push("the generator's core was full: its latencies say little");
  if (processes.node?.cpu_cores > FULL_CORES) found.push("the server's core was full: more work would only have waited longer");
  return found;
}

const median = (values) => {
  const sorted = [...values].sort((one, other) => one - other);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
};

/** How many times better `ours` is; nothing if either has no figure. */
export function ratio(line, ours, theirs) {
  const [one, other] = line.isMoreBetter ? [line.of(ours), line.of(theirs)] : [line.of(theirs), line.of(ours)];
  return one > 0 && other > 0 ? one / other : undefined;
}

/** All ratios: of every line, peer and work, over the rounds in which both runs were whole. */
export function ratios(runs, adapters) {
  const whole = (name, work, round) => runs.find((run) => run.name === name && run.scenario === work && run.round === round && run.verified?.ok);
  const rounds = [...new Set(runs.map(({ round }) => round))];
  const peers = adapters.filter(({ against }) => against);
  return Object.entries(LINES).flatMap(([work, lines]) => peers.flatMap(({ name, against }) => lines.flatMap((line) => {
    const pairs = rounds.map((round) => [whole(against, work, round), whole(name, work, round)]).filter(([ours, theirs]) => ours && theirs);
    const found = pairs.map(([ours, theirs]) => ratio(line, ours, theirs)).filter((value) => value !== undefined);
    if (found.length === 0) return [];
    return [{ work, peer: name, against, line: line.title, rounds: found.length, median: median(found), least: Math.min(...found), most: Math.max(...found) }];
  })));
}

const digits = (value) => value >= 100 ? value.toFixed(0) : value.toFixed(value >= 10 ? 1 : 2);

/** The Markdown of a whole report. */
export function markdown({ runs, ratios: all, settings }, adapters) {
  const peers = adapters.filter(({ name, against }) => against && runs.some((run) => run.name === name));
  const works = Object.keys(LINES).filter((work) => runs.some((run) => run.scenario === work));
  const out = [
    "# Side by side",
    "",
    `How many times better Everthread did${settings.rounds === 1 ? "" : `, median of ${settings.rounds} rounds (least–most)`}. Above 1 it is ahead. Each peer stands against the Everthread that promises as much or more about what is durable.`,
    "",
  ];
  for (const work of works) {
    const feet = [];
    const foot = (text) => { if (!feet.includes(text)) feet.push(text); return `[${feet.indexOf(text) + 1}]`; };
    const sample = runs.find((run) => run.scenario === work && run.params);
    const shape = Object.entries(sample?.params ?? {}).filter(([name]) => !["round", "patience_s"].includes(name)).map(([name, value]) => `${name} ${value}`).join(", ");
    out.push(`## ${work}`, "", shape, "", `| | ${peers.map(({ name }) => name).join(" | ")} |`, `| --- |${" --- |".repeat(peers.length)}`);
    out.push(`| against | ${peers.map(({ against }) => against).join(" | ")} |`);
    for (const { title } of LINES[work]) {
      const cells = peers.map(({ name }) => {
        const found = all.find((one) => one.work === work && one.peer === name && one.line === title);
        if (!found) return "–";
        return found.rounds > 1 ? `**${digits(found.median)}** (${digits(found.least)}–${digits(found.most)})` : `**${digits(found.median)}**`;
      });
      out.push(`| ${title} | ${cells.join(" | ")} |`);
    }
    const remarks = peers.map(({ name }) => {
      const mine = runs.filter((run) => run.name === name && run.scenario === work);
      const told = mine.flatMap((run) => [...run.cannot ?? [], ...run.notes ?? [], ...run.verified?.ok === false ? [`not whole: ${run.verified.problems[0]}`] : [], ...run.error ? [`failed: ${run.error}`] : []]);
      return [...new Set(told)].map((text) => foot(`${name}: ${text}`)).join(" ") || " ";
    });
    if (feet.length > 0) out.push(`| remarks | ${remarks.join(" | ")} |`);
    const ours = runs.filter((run) => run.scenario === work && run.server === "everthread");
    for (const run of ours) for (const text of [...run.notes ?? [], ...run.verified?.ok === false ? run.verified.problems : [], ...run.error ? [run.error] : []]) foot(`${run.name}: ${text}`);
    out.push("", ...feet.map((text, index) => `${index + 1}. ${text.replace(/\s+/g, " ")}`), ...feet.length > 0 ? [""] : []);
  }
  out.push("## What they promise", "", "| | durable | order | resume | history |", "| --- | --- | --- | --- | --- |");
  for (const { name, title, promises } of adapters.filter(({ name }) => runs.some((run) => run.name === name))) {
    const { server_version: version } = runs.find((run) => run.name === name);
    out.push(`| **${name}**: ${title}${version ? ` (${version})` : ""} | ${promises.durable} | ${promises.order} | ${promises.resume} | ${promises.history} |`);
  }
  return `${out.join("\n")}\n`;
}
