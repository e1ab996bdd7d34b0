//! The pure core: state, decide, fold, view. No I/O, no clock.
