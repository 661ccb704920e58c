//! Calls that wait are not ended by a checkpoint, a pause or a restart, and wait no shorter than asked.

use super::{Subject, compile, eventually, sorted};

const SOURCE: &str = include_str!("calls.c");
/// Not carried: System V IPC.
const SKIP: &str = "semtimedop semop msgrcv";

fn expected() -> String {
    let files = tempfile::tempdir().unwrap();
    let program = compile(files.path(), "calls", SOURCE);
    let said = std::process::Command::new(program)
        .arg(SKIP)
        .output()
        .unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(
        said.lines()
            .all(|l| ["ready", "done"].contains(&l) || l.ends_with(" ok")),
        "{said}"
    );
    said
}

/// Waits until every process of the pod sleeps.
fn asleep(subject: &Subject) {
    let init = subject.host.pid("p", "init");
    eventually("rest", || {
        let path = format!("/proc/{init}/task/{init}/children");
        let main = std::fs::read_to_string(path).ok()?;
        let main = main.trim();
        let path = format!("/proc/{main}/task/{main}/children");
        let mut children = std::fs::read_to_string(path).ok()?;
        children.push_str(main);
        let sleeps = |pid: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains(") S ")
        };
        children.split_whitespace().all(sleeps).then_some(())
    });
}

#[test]
fn no_call_is_ended_by_a_stop() {
    let expected = expected();
    let subject = Subject::run(SOURCE, &[SKIP], "ready");
    asleep(&subject);
    subject.leave("first");
    subject.leave("second");
    subject.host.good(&["pause", "p"]);
    subject.host.good(&["resume", "p"]);
    subject.leave("third");
    assert_eq!(sorted(&subject.says("p", "done")), sorted(&expected));
    let mut rest = sorted(&expected);
    rest.retain(|line| *line != "ready");
    for image in ["first", "third"] {
        subject
            .host
            .good(&["restore", &subject.image(image), "-d", "--name", image]);
        assert_eq!(sorted(&subject.says(image, "done")), rest);
    }
}

/// The record says less than was asked for: the time before the stop counts.
#[test]
fn time_that_was_waited_is_not_waited_again() {
    let subject = Subject::run(SOURCE, &[SKIP], "ready");
    asleep(&subject);
    subject.leave("first");
    subject.leave("second");
    let left = |name: &str| -> Vec<(i32, i64, u64)> {
        let image = restore::image::Image::open(subject.image(name).as_ref()).unwrap();
        let processes = image.all::<restore::resource::process::Process>().unwrap();
        let mut left = Vec::new();
        for (_, process) in processes {
            if let restore::resource::process::State::Alive(alive) = process.state {
                left.extend(
                    alive
                        .threads
                        .iter()
                        .filter_map(|t| t.left.map(|l| (t.tid, l.call, l.nanos))),
                );
            }
        }
        left
    };
    let (first, second) = (left("first"), left("second"));
    let calls: std::collections::BTreeSet<i64> = first.iter().map(|l| l.1).collect();
    let timed = [
        libc::SYS_poll,
        libc::SYS_nanosleep,
        libc::SYS_clock_nanosleep,
        libc::SYS_futex,
    ];
    assert_eq!(calls, timed.into_iter().collect());
    assert_eq!(first.len(), second.len());
    for ((tid, call, early), (same, _, late)) in first.into_iter().zip(second) {
        assert_eq!(tid, same);
        assert!(
            late < early && early < 4_000_000_000,
            "call {call}: {early} then {late}"
        );
    }
}
