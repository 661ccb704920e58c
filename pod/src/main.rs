//! pod

fn main() {}
