//! Tests of the session crate: the law of the fold, and the golden vectors that the SDKs share.

mod law;
mod log;
mod paging;
mod vectors;
mod vectors_data;
