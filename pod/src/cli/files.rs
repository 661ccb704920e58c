//! Commands that reach a pod's files: `cp`. (`diff` names a pod and nothing else.)

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;

/// Arguments of `pod cp`.
#[derive(Debug, Args)]
pub(crate) struct Copy {
    /// What to copy
    #[arg(value_name = "[POD:]SRC")]
    pub(crate) source: Place,
    /// Where to
    #[arg(value_name = "[POD:]DST")]
    pub(crate) target: Place,
}

/// A path here, or in a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pod: Option<String>,
    pub(crate) path: PathBuf,
}

impl FromStr for Place {
    type Err = String;

    /// A colon after a slash belongs to a path: `./a:b` is a file here.
    fn from_str(text: &str) -> Result<Self, String> {
        let here = || Self {
            pod: None,
            path: text.into(),
        };
        let place = match text.split_once(':') {
            Some((pod, path)) if !pod.contains('/') => Self {
                pod: Some(pod.to_owned()),
                path: path.into(),
            },
            _ => here(),
        };
        match (
            &place.pod,
            place.path.is_absolute(),
            place.path.as_os_str().is_empty(),
        ) {
            (_, _, true) => Err("want a path".to_owned()),
            (Some(_), false, _) => Err("want an absolute path in the pod".to_owned()),
            _ => Ok(place),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_here_or_in_a_pod() {
        let place = |pod: Option<&str>, path: &str| {
            Ok(Place {
                pod: pod.map(str::to_owned),
                path: path.into(),
            })
        };
        assert_eq!("web:/etc/x".parse(), place(Some("web"), "/etc/x"));
        assert_eq!("./a:b".parse(), place(None, "./a:b"));
        assert_eq!("x".parse(), place(None, "x"));
        assert!("web:etc".parse::<Place>().is_err() && "web:".parse::<Place>().is_err());
    }
}
