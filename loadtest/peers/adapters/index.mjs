// All that can be driven, in the order of the tables. See README.md for what an adapter is.

import everthread from "./everthread.mjs";
import socketio from "./socketio.mjs";

export const ADAPTERS = [...everthread, socketio];

export const byName = (name) => ADAPTERS.find((adapter) => adapter.name === name);
