//! Sessions that nobody uses, kept in an object store and brought back when somebody does.

pub mod object;
