//! The reference page `docs/syscalls.md`, made from the rows.

use std::fmt::Write;

use super::{Arg, Class, Dir, Kind, Row, Verb, all};

const HEAD: &str = "# Syscalls and names

Made from `intercept/src/table`; a test keeps it current. One row for each syscall of
x86-64 that carries a name which may differ from host to host. *Class* says which names
decide: `pids`, `ipc` and `hosts` are intercepted when their backing is `notify` (with
`kernel` a namespace holds them and nothing is intercepted); `endpoints` are intercepted
under `--net shared` in every backing; `always` in every pod that has a filter.

| verb | meaning |
|---|---|
| answer | the supervisor returns the value |
| perform | the supervisor does the call on a duplicate of the descriptor |
| detour | the task runs the call with translated arguments, the result is translated back |
| refuse | the call fails: `io_uring_setup` with `ENOSYS` |
| pass | the call may carry such a name, which passes untranslated |

| syscall | number | arguments | result | class | verb |
|---|---|---|---|---|---|
";

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Value => "·",
        Kind::Fd => "fd",
        Kind::Pid => "pid",
        Kind::PidSet => "pid or −pgid",
        Kind::Tid => "tid",
        Kind::Pgid => "pgid",
        Kind::Sid => "sid",
        Kind::Who => "pid or pgid",
        Kind::Key => "key",
        Kind::Shm => "shm id",
        Kind::Sem => "sem id",
        Kind::Msg => "msg id",
        Kind::Sockaddr => "address",
        Kind::Msghdr => "msghdr",
        Kind::PidBuf => "memory with pids",
        Kind::IpcBuf => "ipc status",
        Kind::HostBuf => "host names",
    }
}

fn class(class: Class) -> &'static str {
    match class {
        Class::None => "",
        Class::Pids => "pids",
        Class::Ipc => "ipc",
        Class::Hosts => "hosts",
        Class::Endpoints => "endpoints",
        Class::Always => "always",
    }
}

fn verb(verb: Verb) -> &'static str {
    match verb {
        Verb::None => "",
        Verb::Answer => "answer",
        Verb::Perform => "perform",
        Verb::Detour => "detour",
        Verb::Refuse => "refuse",
        Verb::Pass => "pass",
    }
}

fn arg(arg: &Arg) -> String {
    let name = kind(arg.kind);
    match arg.dir {
        Dir::Out => format!("{name} out"),
        Dir::In => name.to_owned(),
    }
}

fn line(row: &Row) -> String {
    let args: Vec<_> = row.args.iter().map(arg).collect();
    format!(
        "| `{}` | {} | {} | {} | {} | {} |\n",
        row.nr.name(),
        row.nr.id(),
        args.join(", "),
        kind(row.ret),
        class(row.class),
        verb(row.verb)
    )
}

/// The text of the page.
#[must_use]
pub fn markdown() -> String {
    let (named, plain): (Vec<_>, Vec<_>) = all().partition(|r| r.verb != Verb::None);
    let mut page = HEAD.to_owned();
    page.extend(named.into_iter().map(line));
    page.push_str("\nThe other calls carry no such name and are never notified: ");
    let names: Vec<_> = plain.iter().map(|r| format!("`{}`", r.nr.name())).collect();
    // Writing to a String cannot fail.
    let _ = writeln!(page, "{}.", names.join(", "));
    page
}
