//! Real programs on their journeys.
//!
//! Each program has a module, each journey a test: natively, which shows what the others must look like,
//! then in a pod, and so on.

use anyhow::Result;
use tests::Backing::{Kernel, Notify};
use tests::{Journey, Way, program, travel};

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
    counter: Counter [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), across = Journey::Checkpoint(Kernel, Notify), notify = Journey::Pod(Notify), back = Journey::Checkpoint(Notify, Kernel), by_ssh = Journey::Move(Way::Ssh), by_agent = Journey::Move(Way::Agent)]
    redis: Redis [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent), across = Journey::Checkpoint(Kernel, Notify), back = Journey::Checkpoint(Notify, Kernel)]
    nginx: Nginx [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
    memcached: Memcached [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
    postgres: Postgres [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
    python: Python [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
    threads: Threads [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
    forest: Forest [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
    objects: Objects [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
    node: Node [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
    go: Go [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
    bash: Bash [natively = Journey::Native, in_a_pod = Journey::Pod(Kernel), asleep = Journey::Checkpoint(Kernel, Kernel), by_agent = Journey::Move(Way::Agent)]
}
