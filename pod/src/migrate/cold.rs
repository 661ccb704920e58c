//! Cold: the pod stands still from the first byte to the last. The simplest mode, and what every other
//! one ends with.

use anyhow::Result;

use super::report::{Clock, Progress};
use super::transfer::{Sender, image_files, send_image};
use super::{Moving, Strategy};

/// The cold mode.
#[derive(Debug, Default)]
pub(crate) struct Cold;

impl Strategy for Cold {
    fn name(&self) -> &'static str {
        "cold"
    }

    fn copy(&mut self, _: &mut Moving<'_>) -> Result<()> {
        Ok(())
    }

    fn last_state(&mut self, move_: &mut Moving<'_>) -> Result<u64> {
        let mut clock = Clock::start();
        let image = move_.dir.join("image");
        let pod = &mut *move_.pod;
        move_.conn.while_alive(|| pod.capture(&image))?;
        let capture = clock.lap();
        let of = image_files(&image)?.iter().map(|(_, length)| length).sum();
        let tell = &mut *move_.tell;
        let mut progress = |done| tell(Progress::Bytes { done, of });
        let mut sender = Sender::new(move_.conn, &mut progress);
        send_image(&mut sender, &image)?;
        move_.bytes += sender.finish()?;
        Ok(capture)
    }
}
