// A plain Node server of server-sent events around `resumable-stream`, as its README and the AI SDK's guide set it up: the
// request that asks the model gets the stream, later requests resume it by way of Redis. Tokens of the model come over
// WebSockets at `/model`, as `[stream, text]`, or `[stream]` at the end.

import { createServer } from "node:http";
import { createResumableStreamContext } from "resumable-stream/redis";
import { createClient } from "redis";
import { WebSocketServer } from "ws";

const { port, redis } = JSON.parse(process.argv[2]);
const [publisher, subscriber] = [createClient({ url: redis }), createClient({ url: redis })];
for (const client of [publisher, subscriber]) {
  client.on("error", (error) => console.error(error.message));
  await client.connect();
}
const context = createResumableStreamContext({ waitUntil: (promise) => promise, publisher, subscriber });
/** Where the tokens of each stream go. */
const models = new Map();

function fromModel(id) {
  return new ReadableStream({ start: (controller) => { models.set(id, controller); } });
}

async function answer(stream, response) {
  if (!stream) return response.writeHead(204).end();
  response.writeHead(200, { "content-type": "text/event-stream", "cache-control": "no-cache" });
  response.flushHeaders();
  const reader = stream.getReader();
  response.on("close", () => reader.cancel().catch(() => {}));
  for (let read = await reader.read(); !read.done; read = await reader.read()) response.write(read.value);
  response.end();
}

const http = createServer((request, response) => {
  const { pathname, searchParams } = new URL(request.url, "http://localhost");
  const id = pathname.slice("/chat/".length);
  request.resume();
  request.socket.setNoDelay(true);
  const stream = request.method === "POST"
    ? context.createNewResumableStream(id, () => fromModel(id))
    : context.resumeExistingStream(id, Number(searchParams.get("resumeAt") ?? 0));
  stream.then((found) => answer(found, response)).catch((error) => {
    console.error(error.message);
    response.headersSent ? response.destroy() : response.writeHead(500).end();
  });
});

new WebSocketServer({ server: http, path: "/model", perMessageDeflate: false }).on("connection", (socket) => {
  socket.on("message", (data) => {
    const [id, text] = JSON.parse(data);
    if (text === undefined) models.get(id)?.close();
    else models.get(id)?.enqueue(`data: ${JSON.stringify(text)}\n\n`);
  });
});
http.listen(port, "127.0.0.1");
