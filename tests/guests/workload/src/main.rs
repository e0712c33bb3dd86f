//! The workload.
fn main() {}
