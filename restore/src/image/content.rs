//! Contents of files and shared memory that live in the image: sparse, page-aligned.

use std::{fs::File, io, os::unix::fs::FileExt};

use serde::{Deserialize, Serialize};

/// A piece of a content: `len` bytes at `at`, stored at `offset` of `pages.img`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Place in the object, in bytes.
    pub at: u64,
    /// Length, in bytes.
    pub len: u64,
    /// Place in `pages.img`, in bytes; a multiple of the page size.
    pub offset: u64,
}

/// A whole object's bytes: what no extent covers is zero.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Size of the object, in bytes.
    pub size: u64,
    /// Its pieces, in ascending order.
    pub extents: Vec<Extent>,
}

impl Content {
    /// Writes the bytes into `to`, which is made `size` long.
    ///
    /// # Errors
    /// What reading `pages` or writing `to` said.
    pub fn restore(&self, pages: &File, to: &File) -> io::Result<()> {
        to.set_len(self.size)?;
        let mut buf = vec![0u8; 1 << 20];
        for extent in &self.extents {
            copy_extent(pages, to, *extent, &mut buf)?;
        }
        Ok(())
    }
}

fn copy_extent(pages: &File, to: &File, extent: Extent, buf: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < extent.len {
        let n = buf.len().min((extent.len - done) as usize);
        pages.read_exact_at(&mut buf[..n], extent.offset + done)?;
        to.write_all_at(&buf[..n], extent.at + done)?;
        done += n as u64;
    }
    Ok(())
}
