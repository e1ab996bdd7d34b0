export { type ConnectionState, Everthread, type EverthreadOptions } from "./client.js";
export { type Cursor, parseCursor } from "./cursor.js";
export { EverthreadError } from "./errors.js";
export { Http, type SessionListItem } from "./http.js";
export type { WebSocketConstructor, WebSocketLike } from "./link.js";
export type * from "./protocol.js";
export { type SentMessage, Session, type SessionOptions, type SessionStatus, type ViewStorage } from "./session.js";
export { ulid } from "./ulid.js";
export { type Applied, type Change, InconsistentView, View } from "./view.js";
