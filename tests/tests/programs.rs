//! Real programs on their journeys.
//!
//! Each program has a module, each journey a test: natively, which shows what the others must look like,
//! then in a pod, and so on.

use anyhow::Result;
use tests::Backing::Kernel;
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
    counter: Counter [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    redis: Redis [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    nginx: Nginx [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    memcached: Memcached [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    postgres: Postgres [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    python: Python [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    threads: Threads [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    forest: Forest [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    objects: Objects [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    node: Node [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    go: Go [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
    bash: Bash [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel)]
}
