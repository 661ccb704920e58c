//! Commands that put a pod to sleep, wake it, and look at it asleep.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::store::{NamesChoice, Net};

/// Arguments of `pod checkpoint`.
#[derive(Debug, Args)]
pub(crate) struct Checkpoint {
    /// Where the image goes: a directory that does not exist yet
    #[arg(short, long, value_name = "IMAGE")]
    pub(crate) output: PathBuf,
    /// Let the pod go on after the image is taken
    #[arg(long)]
    pub(crate) leave_running: bool,
    /// The pod's name or id
    #[arg(value_name = "POD")]
    pub(crate) pod: String,
}

/// Arguments of `pod restore`.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Return when the pod runs
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// The pod's name on this host (the default is the name it had)
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// What holds the pod's names here (the default is what was asked for when it was run)
    #[arg(long, value_enum)]
    pub(crate) names: Option<NamesChoice>,
    /// The pod's network here (the default is the one it had)
    #[arg(long)]
    pub(crate) net: Option<Net>,
    /// The image, as `pod checkpoint` wrote it
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,
}

/// What can be done with an image.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Show what an image holds, as JSON
    Inspect(OneImage),
    /// Prove an image whole: every file has the length and hash its header says
    Verify(OneImage),
    /// List the processes of an image, the files they have open, and the image's own files
    Ls(OneImage),
    /// Tell what differs between two images: A added, C changed, D deleted
    Diff(TwoImages),
}

/// Two images, by their paths.
#[derive(Debug, Args)]
pub(crate) struct TwoImages {
    /// The older image's directory
    #[arg(value_name = "A")]
    pub(crate) old: PathBuf,
    /// The newer image's directory
    #[arg(value_name = "B")]
    pub(crate) new: PathBuf,
}

/// An image, by its path.
#[derive(Debug, Args)]
pub(crate) struct OneImage {
    /// The image's directory
    #[arg(value_name = "IMAGE")]
    pub(crate) image: PathBuf,
}
