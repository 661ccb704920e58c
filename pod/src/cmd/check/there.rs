//! `pod check DEST`: what another host lacks for a pod.

use anyhow::Result;
use serde::Serialize;

use super::UNFIT;
use crate::cli::Format;
use crate::cmd::migrate::{Connection, Destination};
use crate::failure::Failure;
use crate::messages::{Ask, Told};
use crate::migrate::frame::Conn;
use crate::migrate::message::{Answer, Lack, Needs, Say, unexpected};
use crate::migrate::needs;
use crate::output;
use crate::store::Store;
use crate::supervise::Client;

/// The result, for programs.
#[derive(Serialize)]
struct Checked<'a> {
    fits: bool,
    needs: &'a Needs,
    lacks: &'a [Lack],
}

/// Asks a host. The exit code says whether it lacks anything.
pub(super) fn check(store: &Store, to: &str, pod: Option<&str>, format: Format) -> Result<u8> {
    let needs = match pod {
        Some(pod) => needs_of(store, pod)?,
        None => any(),
    };
    let lacks = ask(store, to, &needs)?;
    match format {
        Format::Json => output::json(&Checked {
            fits: lacks.is_empty(),
            needs: &needs,
            lacks: &lacks,
        })?,
        Format::Table => output::print(&told(&lacks))?,
    }
    Ok(if lacks.is_empty() { 0 } else { UNFIT })
}

fn told(lacks: &[Lack]) -> String {
    if lacks.is_empty() {
        return "it fits\n".to_owned();
    }
    lacks
        .iter()
        .map(|lack| format!("{}\n  hint: {}\n", lack.what, lack.hint))
        .collect()
}

fn needs_of(store: &Store, pod: &str) -> Result<Needs> {
    let (told, _) = Client::to_live(&store.find(pod)?)?.ask(&Ask::Needs)?;
    match told {
        Told::Needs(needs) => Ok(*needs),
        _ => Err(Failure::new("the supervisor gave an answer to another question").into()),
    }
}

/// What every pod of this host needs.
fn any() -> Needs {
    let kernel = needs::FEATURES
        .iter()
        .map(|feature| feature.name.to_owned())
        .collect();
    Needs {
        arch: std::env::consts::ARCH.into(),
        cpu: needs::cpu(),
        kernel,
        ..Needs::default()
    }
}

fn ask(store: &Store, to: &str, needs: &Needs) -> Result<Vec<Lack>> {
    let Connection { channel, fds, ssh } = to.parse::<Destination>()?.connect()?;
    let asked = Conn::over(store.root(), channel, fds)
        .and_then(|mut conn| Ok((conn.ask(&Say::Check(needs.clone()))?, conn)));
    let (answer, mut conn) = match asked {
        Ok(asked) => asked,
        Err(error) => return Err(ssh.explain(error)),
    };
    let Answer::Lacks(lacks) = answer else {
        return Err(unexpected("Lacks", &answer).into());
    };
    conn.send(&Say::Bye)?;
    Ok(lacks)
}
