//! Tests of the store: one conformance suite for every engine, and what each engine promises besides.
//!
//! To put an engine through the suite, write a module like `embedded` and name it here.

#[cfg(test)]
mod embedded;
#[cfg(test)]
mod equivalence;
#[cfg(test)]
mod fold_law;
#[cfg(test)]
mod kill;
#[cfg(test)]
mod kill_trim;
#[cfg(test)]
mod redis;
#[cfg(test)]
mod suite;
