//! kvip.
fn main() {}
