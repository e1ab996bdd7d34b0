// Socket.IO as its documentation recommends it for more than one node: WebSocket only (so no sticky sessions), the Redis
// Streams adapter, connection state recovery. A session is a room; a token is an event to the room.

import { createServer } from "node:http";
import { createAdapter } from "@socket.io/redis-streams-adapter";
import { createClient } from "redis";
import { Server } from "socket.io";

const { port, redis, maxLen } = JSON.parse(process.argv[2]);
const client = createClient({ url: redis });
client.on("error", (error) => console.error(error.message));
await client.connect();

const http = createServer();
const io = new Server(http, {
  transports: ["websocket"],
  serveClient: false,
  adapter: createAdapter(client, { maxLen }),
  connectionStateRecovery: { maxDisconnectionDuration: 120_000, skipMiddlewares: true },
});
// Frees the memory of the first request of each connection, as its page on memory usage advises.
io.engine.on("connection", (raw) => { raw.request = null; });
io.on("connection", (socket) => {
  socket.on("follow", async (room, done) => {
    await socket.join(room);
    done();
  });
  socket.on("write", (room, text, done) => {
    io.to(room).emit("t", text);
    done();
  });
});
http.listen(port, "127.0.0.1");
