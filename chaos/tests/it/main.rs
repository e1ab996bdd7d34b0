//! Tests of the checker with the product: it finds what is planted, and nothing where nothing is.

#[cfg(test)]
mod nodes;
#[cfg(test)]
mod planted;
