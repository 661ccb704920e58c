//! memcached: threads with an event loop each.

use std::io::{BufRead, BufReader, Write};

use anyhow::{Result, ensure};

use super::{Program, words};
use crate::host::Host;
use crate::site::Site;
use crate::wait::eventually;

/// `memcached` with four threads.
#[derive(Debug, Default)]
pub struct Memcached {
    loaded: u32,
}

const PORT: u16 = 11211;
const EACH: u32 = 1000;

fn value(number: u32) -> String {
    format!("{number:08}").repeat(20)
}

fn set(number: u32) -> String {
    let value = value(number);
    format!("set key-{number} 0 0 {}\r\n{value}\r\n", value.len())
}

impl Memcached {
    fn ask(&self, site: &Site<'_>, numbers: std::ops::Range<u32>) -> Result<()> {
        let mut stream = BufReader::new(site.connect(PORT)?);
        let asked: String = numbers
            .clone()
            .map(|number| format!("get key-{number}\r\n"))
            .collect();
        stream.get_mut().write_all(asked.as_bytes())?;
        for number in numbers {
            let mut lines = [String::new(), String::new(), String::new()];
            for line in &mut lines {
                stream.read_line(line)?;
            }
            ensure!(
                lines[0].starts_with("VALUE "),
                "key-{number} is lost: {lines:?}"
            );
            ensure!(
                lines[1].trim() == value(number),
                "key-{number} is {lines:?}"
            );
        }
        Ok(())
    }
}

impl Program for Memcached {
    fn prepare(&mut self, _: &Host) -> Result<()> {
        Ok(())
    }

    fn command(&self) -> Vec<String> {
        words(&[
            "memcached",
            "-u",
            "nobody",
            "-t",
            "4",
            "-p",
            &PORT.to_string(),
            "-U",
            "0",
            "-l",
            "0.0.0.0",
        ])
    }

    fn ready(&mut self, site: &Site<'_>) -> Result<()> {
        eventually("memcached to listen", || site.connect(PORT)).map(drop)
    }

    fn load(&mut self, site: &Site<'_>) -> Result<()> {
        let mut stream = BufReader::new(site.connect(PORT)?);
        let numbers = self.loaded..self.loaded + EACH;
        let told: String = numbers.clone().map(set).collect();
        stream.get_mut().write_all(told.as_bytes())?;
        for _ in numbers {
            let mut answer = String::new();
            stream.read_line(&mut answer)?;
            ensure!(answer.trim() == "STORED", "{answer:?}");
        }
        self.loaded += EACH;
        Ok(())
    }

    fn check(&mut self, site: &Site<'_>) -> Result<()> {
        self.ask(site, 0..self.loaded)
    }
}
