//! An archive in front of both engines.

#[cfg(test)]
mod failing;
#[cfg(test)]
mod s3;
#[cfg(test)]
mod there_and_back;
#[cfg(test)]
mod world;
