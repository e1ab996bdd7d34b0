// The reference server of Durable Streams: with `dataDir` on files, else in memory.

import { DurableStreamTestServer } from "@durable-streams/server";

const { port, dataDir } = JSON.parse(process.argv[2]);
await new DurableStreamTestServer({ port, host: "127.0.0.1", dataDir }).start();
