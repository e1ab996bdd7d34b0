import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Host } from "./src/host.mjs";
import { byName } from "./adapters/index.mjs";
const tools = { everthread: fileURLToPath(new URL("../../target/release/everthread", import.meta.url)), redis: "redis-server", nats: fileURLToPath(new URL(".venv/bin/nats-server", import.meta.url)) };
const [server, work, json] = process.argv.slice(2);
const params = { sessions: 1, followers_per_session: 50, tokens_per_s_per_session: 50, seconds_s: 4, warmup_s: 1, patience_s: 10, writers: 2, ...JSON.parse(json ?? "{}") };
const host = new Host({ tools, cores: { server: "0", generator: "1" }, top: "/tmp" });
await host.begin();
try {
  const target = await byName(server).start(host);
  const [c, a] = host.pinned("generator", process.execPath, [fileURLToPath(new URL("src/generator.mjs", import.meta.url))]);
  const child = spawn(c, a, { stdio: ["pipe", "pipe", "inherit"] });
  child.stdin.end(JSON.stringify({ server, work, params, target, pids: host.pids }));
  let out = ""; for await (const m of child.stdout) out += m;
  console.log(JSON.stringify(JSON.parse(out), null, 1));
  console.log(host.said());
} finally { await host.end(); }
