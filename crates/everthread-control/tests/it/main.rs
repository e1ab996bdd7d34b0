//! Tests of the control crate on the embedded engine, in memory.

#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

mod dispatch;
