//! Tests of the checker with the product: it finds what is planted, and nothing where nothing is.

mod nodes;
mod planted;
