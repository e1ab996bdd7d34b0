// All that can be driven, in the order of the tables. See README.md for what an adapter is.

import durableStreams from "./durable-streams.mjs";
import everthread from "./everthread.mjs";
import nats from "./nats.mjs";
import resumableStream from "./resumable-stream.mjs";
import socketio from "./socketio.mjs";

export const ADAPTERS = [...everthread, ...durableStreams, resumableStream, socketio, nats];

export const byName = (name) => ADAPTERS.find((adapter) => adapter.name === name);
