//! The `everthread` binary.
fn main() {}
