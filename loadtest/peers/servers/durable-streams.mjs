// The reference server of Durable Streams: with `dataDir` on files, else in memory.

import { DurableStreamTestServer, FileBackedStreamStore } from "@durable-streams/server";

const { port, dataDir, maxFileHandles } = JSON.parse(process.argv[2]);
const server = new DurableStreamTestServer({ port, host: "127.0.0.1" });
// The server has no option for the number of open files, and its store's default of 100 lets appends fail as soon as more
// streams are written at once. So the store, which has the option, is put in its place.
if (dataDir) server.store = new FileBackedStreamStore({ dataDir, maxFileHandles });
await server.start();
