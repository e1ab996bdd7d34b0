//! Faults that are planted on purpose, for the tests of what must find them. Only with the feature `planted-faults`, and never in
//! a release build.
//!
//! One fault at a time, for the whole process, chosen before a store is connected.

use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

#[cfg(not(debug_assertions))]
compile_error!("planted faults are for tests: a release build must not have them");

/// The environment variable that names the fault of a node.
pub const VARIABLE: &str = "EVERTHREAD_PLANTED_FAULT";

/// Something that is done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Fault {
    /// A tail takes a record that leaves something out.
    GapCheck = 1,
    /// The store takes writes of whoever held the fence once.
    Fence = 2,
    /// Whoever stands on a tail that the log has lost is not told.
    Reset = 3,
}

/// The fault, as its number; 0 for none.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// Plants a fault, in place of any other.
pub fn plant(fault: Option<Fault>) {
    CHOSEN.store(fault.map_or(0, |fault| fault as u8), Ordering::SeqCst);
}

/// Whether this fault is planted.
pub fn is(fault: Fault) -> bool {
    CHOSEN.load(Ordering::Relaxed) == fault as u8
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Fault, String> {
        match text {
            "gap-check" => Ok(Fault::GapCheck),
            "fence" => Ok(Fault::Fence),
            "reset" => Ok(Fault::Reset),
            other => Err(format!("{other:?}: it is gap-check, fence or reset")),
        }
    }
}

/// A script without its check of the fence, if that is the fault. Panics if the check does not stand there as it did.
pub(crate) fn without_fence(text: &'static str) -> &'static str {
    const CHECKS: [&str; 2] =
        ["if fence_run ~= '' and m[8] ~= ARGV[9] then return {'fenced'} end", "m[5] ~= ARGV[before + 3] or "];
    if !is(Fault::Fence) {
        return text;
    }
    let without = CHECKS.iter().fold(text.to_owned(), |text, check| text.replace(check, ""));
    assert_ne!(without, text, "the check of the fence is not where it is looked for");
    without.leak()
}
