//! Leases, dispatch of runs to workers, controls and deadlines.
