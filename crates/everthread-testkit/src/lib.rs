//! Real Redis servers, node processes and a fault proxy for tests.
