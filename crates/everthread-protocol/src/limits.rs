//! Every limit of the protocol, by name. A request beyond one is refused with a typed error that names it.

/// Bytes of one client or worker frame. Larger frames close the connection with 4413.
pub const FRAME_BYTES_MAX: usize = 320 * 1024;
/// Bytes of the entry array of one block. Fits a frame with room for its envelope.
pub const BLOCK_BYTES_MAX: usize = 256 * 1024;
/// Entries of one block; bounds the work of one atomic write.
pub const BLOCK_ENTRIES_MAX: usize = 1024;
/// Nesting depth of any JSON the server keeps. Readers in other languages recurse.
pub const JSON_DEPTH_MAX: usize = 64;
/// Bytes of an id: session, run, message, agent, device, ….
pub const ID_BYTES_MAX: usize = 128;
/// Bytes of the name of an `event`, and of the type of an `x-` entry. A View keeps the last of each name.
pub const EVENT_NAME_BYTES_MAX: usize = 256;
/// Bytes of text in one merged append; a longer run of appends is folded into several.
pub const FOLDED_TEXT_BYTES_MAX: usize = 64 * 1024;
/// Messages that `recent` may ask for.
pub const RECENT_MESSAGES_MAX: usize = 1000;
/// Messages in one page of `history`.
pub const HISTORY_MESSAGES_MAX: usize = 200;
/// Entries in one page of `GET …/entries`.
pub const PAGE_ENTRIES_MAX: usize = 5000;
/// Sessions in one page of `GET /v1/sessions`.
pub const PAGE_SESSIONS_MAX: usize = 500;
/// Milliseconds between two `entries` frames that an attachment may ask for.
pub const FOLD_MS_MAX: u64 = 500;
/// Sessions that `watch` may ask for.
pub const FEED_SESSIONS_MAX: usize = 200;
/// Attachments of one connection.
pub const ATTACHMENTS_MAX: usize = 1024;
/// Agents one worker connection may offer.
pub const WORKER_AGENTS_MAX: usize = 64;
/// Runs one worker connection may hold at once, over all its agents.
pub const WORKER_CAPACITY_MAX: u32 = 4096;
/// How long ids of `put` and `control` requests are remembered with their first answer.
pub const REQUEST_MEMORY_MS: u64 = 10 * 60 * 1000;
/// Remembered request ids and producers of one session.
pub const REQUESTS_MAX: usize = 1024;
/// Runs of one session that are requested, active or suspended.
pub const OPEN_RUNS_MAX: usize = 64;
/// Controls of one session without an outcome.
pub const PENDING_CONTROLS_MAX: usize = 64;
/// Ended runs and settled controls that a session's state remembers …
pub const SETTLED_MAX: usize = 256;
/// … and for how long.
pub const SETTLED_MEMORY_MS: u64 = 10 * 60 * 1000;
/// How long a cancel by input waits for an input that has not arrived yet.
pub const CANCEL_INPUT_WAIT_MS: u64 = 30 * 1000;
/// Branches of one session. Editing, regenerating and selecting are refused beyond them; everything else goes on.
pub const BRANCHES_MAX: usize = 1000;
/// Keys that `state.set` may create in one session …
pub const VALUES_MAX: usize = 64;
/// … and the bytes of all of them.
pub const VALUES_BYTES_MAX: usize = 16 * 1024;
/// Bytes of a session's `meta` object.
pub const META_BYTES_MAX: usize = 8 * 1024;
/// Bytes of the core state of one session. Beyond them nothing new begins; what brings work to its end goes on, and adds
/// at most a few hundred bytes per open run.
pub const STATE_BYTES_MAX: usize = 64 * 1024;
/// Epochs a session remembers; a cursor of an older one gets a `reset`.
pub const EPOCHS_MAX: usize = 32;
/// Open parts of one run; bounds what the edge that hosts the run keeps.
pub const OPEN_PARTS_MAX: usize = 256;
/// Approvals of one session without an outcome.
pub const OPEN_APPROVALS_MAX: usize = 32;
/// Approvals of one run, in all.
pub const RUN_APPROVALS_MAX: usize = 64;
/// Bytes of an answer to an approval.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024;
/// How long an approval waits for an answer unless it says how long.
pub const APPROVAL_WAIT_MS: u64 = 24 * 60 * 60 * 1000;
/// How long an approval may wait for an answer.
pub const APPROVAL_WAIT_MAX_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// How long `steer` waits for the worker to take the message, unless the request says how long.
pub const STEER_WAIT_MS: u64 = 2 * 60 * 1000;
/// How long `pause` and `resume` wait for the worker, unless the request says how long.
pub const PAUSE_WAIT_MS: u64 = 30 * 1000;
/// How long a control may wait for its outcome.
pub const CONTROL_WAIT_MAX_MS: u64 = 60 * 60 * 1000;
/// Devices of one session; of more, the one idle for longest is forgotten.
pub const DEVICES_MAX: usize = 1024;
/// A device that has acknowledged nothing for so long is forgotten.
pub const DEVICE_IDLE_MS: u64 = 30 * 24 * 60 * 60 * 1000;
/// Unread messages that are counted; of more, this many are told.
pub const UNREAD_MAX: u64 = 1000;
/// Bytes of the data of one present member.
pub const PRESENCE_DATA_BYTES_MAX: usize = 1024;
/// Members that are listed; of more, only their number is told.
pub const PRESENCE_LIST_MAX: usize = 200;
/// Messages that become the input of one run: further ones stay in the session and are not named.
pub const RUN_INPUT_MAX: usize = 64;
