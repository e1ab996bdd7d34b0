//! The session as people see it.
