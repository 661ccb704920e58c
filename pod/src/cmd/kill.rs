//! `pod kill`: a signal for a program in a pod.

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::cli::Kill;
use crate::failure::Failure;
use crate::messages::Ask;
use crate::store::Pod;
use crate::supervise::Client;

/// Runs the command.
pub(super) fn kill(pod: &Pod, arguments: &Kill) -> Result<u8> {
    let signal = signal_number(&arguments.signal)?;
    Client::to_live(pod)?.ask(&Ask::Kill {
        signal,
        vpid: arguments.pid,
    })?;
    Ok(0)
}

/// A signal by number, or by name with or without SIG; RTMIN+n and RTMAX-n too (signal(7)).
fn signal_number(text: &str) -> Result<i32, Failure> {
    let name = text.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    let unknown =
        || Failure::new(format!("{text} is no signal")).hint("a number, or a name as in kill -l");
    let number = if let Ok(number) = name.parse() {
        number
    } else if let Some(rest) = name.strip_prefix("RTMIN") {
        libc::SIGRTMIN() + offset(rest).ok_or_else(unknown)?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        libc::SIGRTMAX() + offset(rest).ok_or_else(unknown)?
    } else {
        format!("SIG{name}")
            .parse::<Signal>()
            .map_err(|_| unknown())? as i32
    };
    (1..=libc::SIGRTMAX())
        .contains(&number)
        .then_some(number)
        .ok_or_else(unknown)
}

fn offset(text: &str) -> Option<i32> {
    if text.is_empty() {
        Some(0)
    } else {
        text.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("sigterm", 15),
            ("2", 2),
            ("RTMIN+1", libc::SIGRTMIN() + 1),
            ("RTMAX", libc::SIGRTMAX()),
        ] {
            assert_eq!(signal_number(text).unwrap(), number, "{text}");
        }
        for bad in ["", "FOO", "0", "-1", "65", "RTMIN-1x", "RTMAX+1"] {
            assert!(signal_number(bad).is_err(), "{bad}");
        }
    }
}
