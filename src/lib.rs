//! kvip.
