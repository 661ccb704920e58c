//! Real programs on their journeys.
//!
//! Each program has a module, each journey a test: natively, which shows what the others must look like,
//! then in a pod, and so on.

use anyhow::Result;
use tests::{Journey, program, travel};

macro_rules! journeys {
    ($($module:ident: $program:ident [$($name:ident = $journey:expr),* $(,)?])*) => {
        $(mod $module {
            use super::*;
            $(#[test]
            fn $name() -> Result<()> {
                travel(&mut program::$program::default(), $journey)
            })*
        })*
    };
}

journeys! {
    counter: Counter [natively = Journey::Native]
    redis: Redis [natively = Journey::Native]
    nginx: Nginx [natively = Journey::Native]
    memcached: Memcached [natively = Journey::Native]
    postgres: Postgres [natively = Journey::Native]
    python: Python [natively = Journey::Native]
    threads: Threads [natively = Journey::Native]
    forest: Forest [natively = Journey::Native]
    node: Node [natively = Journey::Native]
    go: Go [natively = Journey::Native]
}
