//! Tests of the session crate: decisions, the law of the fold, and the golden vectors that the SDKs share.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod branch;
mod decide_branch;
mod decide_control;
mod decide_people;
mod decide_stories;
mod decide_table;
mod decide_walk;
mod forked;
mod law;
mod ledger;
mod log;
mod paging;
mod vectors;
mod vectors_branch;
mod vectors_control;
mod vectors_data;
mod vectors_feed;
mod vectors_frames;
mod world;
