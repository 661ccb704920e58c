//! Images whose records were changed by somebody who knows the format: each ends in an error or in a pod that
//! can be removed. The seed is fixed, so a failure comes again.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Output};
use std::sync::mpsc::channel;
use std::time::Duration;

use ciborium::Value;

use super::host::Host;
use super::sleeping::{HOLDER, Sleeping, change_header, field, records, write_records};

/// How many images are tried.
const TRIES: u64 = 40;
/// A command that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Numbers without a pattern, the same in each run (splitmix64).
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides.max(1) as u64) as usize
    }

    fn number(&mut self) -> Value {
        let numbers: [i128; 10] = [
            0,
            1,
            -1,
            i32::MAX.into(),
            i32::MIN.into(),
            u32::MAX.into(),
            i64::MAX.into(),
            u64::MAX.into(),
            4095,
            0x7fff_ffff_f000,
        ];
        let number = numbers[self.throw(numbers.len())];
        Value::Integer(number.try_into().unwrap())
    }

    fn bytes(&mut self) -> Vec<u8> {
        let texts: [&[u8]; 6] = [
            b"",
            b"../../../../etc/passwd",
            b"/proc/self/mem",
            b"a\0b",
            b"\xff\xfe",
            &[b'x'; 5000],
        ];
        texts[self.throw(texts.len())].to_vec()
    }

    /// Another value in the place of one.
    fn change(&mut self, value: &mut Value) {
        match value {
            Value::Array(all) if !all.is_empty() && self.throw(2) == 0 => {
                let at = self.throw(all.len());
                match self.throw(2) {
                    0 => drop(all.remove(at)),
                    _ => all.push(all[at].clone()),
                }
            }
            Value::Map(all) if !all.is_empty() && self.throw(3) == 0 => {
                let at = self.throw(all.len());
                all.remove(at);
            }
            Value::Integer(_) if self.throw(8) != 0 => *value = self.number(),
            Value::Bytes(_) if self.throw(8) != 0 => *value = Value::Bytes(self.bytes()),
            Value::Text(_) if self.throw(8) != 0 => {
                *value = Value::Text(String::from_utf8_lossy(&self.bytes()).into_owned());
            }
            _ => {
                let others = [
                    Value::Null,
                    Value::Bool(true),
                    Value::Array(Vec::new()),
                    Value::Integer(7.into()),
                ];
                *value = others[self.throw(others.len())].clone();
            }
        }
    }

    /// Changes some value inside of another.
    fn mutate(&mut self, value: &mut Value) {
        let inner = match value {
            Value::Array(all) if !all.is_empty() => {
                let at = self.throw(all.len());
                all.get_mut(at)
            }
            Value::Map(all) if !all.is_empty() => {
                let at = self.throw(all.len());
                all.get_mut(at).map(|(_, value)| value)
            }
            _ => None,
        };
        match inner {
            Some(inner) if self.throw(12) != 0 => self.mutate(inner),
            _ => self.change(value),
        }
    }

    /// Changes the records of an image.
    fn spoil(&mut self, all: &mut Vec<Value>) {
        let at = self.throw(all.len());
        match self.throw(10) {
            0 => drop(all.remove(at)),
            1 => {
                let mut copy = all[at].clone();
                *field(&mut copy, "id") = self.number();
                all.push(copy);
            }
            _ => self.mutate(field(&mut all[at], "body")),
        }
    }
}

/// Waits for a command that must not hang.
fn end(child: Child, what: &str) -> Output {
    let (sender, receiver) = channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    let output = receiver.recv_timeout(PATIENCE);
    output.unwrap_or_else(|_| panic!("{what} hangs")).unwrap()
}

fn run(host: &Host, arguments: &[&str], what: &str) -> (i32, String) {
    let output = end(host.start(arguments), &format!("{what}: pod {arguments:?}"));
    let said: super::host::Said = output.into();
    assert!(!said.err.contains("panicked"), "{what}: {}", said.err);
    assert!(said.code >= 0, "{what} was killed: {said:?}");
    (said.code, said.err)
}

/// What nobody may touch.
fn untouched() -> (i64, u64) {
    let passwd = fs::metadata("/etc/passwd").unwrap();
    (passwd.mtime(), passwd.len())
}

#[test]
fn a_hostile_image_gives_an_error_or_a_pod_that_can_be_removed() {
    let host = Host::new();
    let sleeping = Sleeping::of(&host, &["python3", "-c", HOLDER]);
    let (whole, before) = (records(&sleeping.image()), untouched());
    let (mut woken, mut refused) = (0, 0);
    for seed in 0..TRIES {
        let what = format!("the image of seed {seed}");
        let mut dice = Dice(seed);
        let mut all = whole.clone();
        dice.spoil(&mut all);
        let image = sleeping.copy(&format!("hostile-{seed}"));
        write_records(&image, &all);
        let path = image.to_str().unwrap();
        run(&host, &["image", "verify", path], &what);
        run(&host, &["image", "inspect", path], &what);
        run(&host, &["image", "ls", path], &what);
        let (code, err) = run(&host, &["restore", "-d", "--name", "woken", path], &what);
        if code == 0 {
            woken += 1;
            let (code, err) = run(&host, &["rm", "-f", "woken"], &what);
            assert_eq!(code, 0, "{what}: {err}");
        } else {
            refused += 1;
            assert!(code == 125 && !err.is_empty(), "{what}: {code} {err}");
        }
        assert_eq!(
            host.good(&["ps", "-a", "--format", "json"]).trim(),
            "[]",
            "{what}"
        );

        fs::remove_dir_all(&image).unwrap();
    }
    assert_eq!(untouched(), before);
    assert!(
        refused > TRIES / 4 && woken > 0,
        "{woken} woke, {refused} were refused"
    );
}

#[test]
fn bytes_that_are_no_image_give_an_error() {
    let host = Host::new();
    let sleeping = Sleeping::of(&host, &["busybox", "sh", "-c", "echo up; exec sleep 1000"]);
    let image = sleeping.copy("noise");
    let mut dice = Dice(1);
    for file in ["header.cbor", "records.cbor"] {
        let whole = fs::read(image.join(file)).unwrap();
        for _ in 0..40 {
            let mut bytes = whole.clone();
            let cut = dice.throw(bytes.len());
            for byte in bytes.iter_mut().skip(cut).take(9) {
                *byte = dice.throw(256) as u8;
            }
            fs::write(image.join(file), &bytes).unwrap();
            if file == "records.cbor" {
                change_header(&image, |header| {
                    let sum = field(field(header, "files"), file);
                    *field(sum, "blake3") = blake3::hash(&bytes).to_hex().as_str().into();
                });
            }
            let path = image.to_str().unwrap();
            run(&host, &["image", "inspect", path], "noise");
            run(&host, &["image", "verify", path], "noise");
        }
        fs::write(image.join(file), &whole).unwrap();
    }
}

#[test]
fn no_name_in_an_image_leads_out_of_the_pod() {
    let host = Host::new();
    let sleeping = Sleeping::of(&host, &["busybox", "sh", "-c", "echo up; exec sleep 1000"]);
    let outside = sleeping.dir.path().join("outside");
    let parts = [
        "layer...",
        "layer..",
        "layer./../../outside",
        "../outside",
        "/outside",
        ".hidden",
    ];
    for (number, name) in parts.iter().enumerate() {
        let image = sleeping.copy(&format!("image-{number}"));
        add_file(&image, name);
        let path = image.to_str().unwrap();
        let (code, err) = run(&host, &["restore", "-d", "--name", "woken", path], name);
        assert!(
            code == 125 && err.contains("\nhint: "),
            "{name}: {code} {err}"
        );
        assert!(!outside.exists());
    }
}

/// Names a further file in the header, and makes it where that can be.
fn add_file(image: &Path, name: &str) {
    let layer = fs::read_dir(image)
        .unwrap()
        .flatten()
        .map(|e| e.file_name().into_string().unwrap());
    let layer = layer.into_iter().find(|n| n.starts_with("layer.")).unwrap();
    if !name.contains('/') {
        fs::copy(image.join(&layer), image.join(name)).unwrap();
    }
    change_header(image, |header| {
        let files = field(header, "files");
        let sum = field(files, &layer).clone();
        files.as_map_mut().unwrap().push((name.into(), sum));
    });
}
