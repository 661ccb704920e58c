//! `pod image`: looks at a sleeping pod.

mod diff;
mod list;

use std::path::Path;

use anyhow::Result;
use restore::image::Image;
use serde_json::{Value, json};

use crate::cli::{Format, ImageCommand, OneImage};
use crate::failure::Hinted;
use crate::output;

/// Runs the command.
pub(super) fn image(command: &ImageCommand, format: Format) -> Result<u8> {
    match command {
        ImageCommand::Inspect(one) => inspect(one),
        ImageCommand::Verify(one) => verify(one),
        ImageCommand::Ls(one) => list::list(&open(&one.image)?, format),
        ImageCommand::Diff(two) => diff::diff(&open(&two.old)?, &open(&two.new)?, format),
    }
}

fn open(path: &Path) -> Result<Image> {
    let what = format!("open the image {}", path.display());
    Image::open(path).hinted(what, "give the directory that pod checkpoint wrote")
}

fn inspect(one: &OneImage) -> Result<u8> {
    let image = open(&one.image)?;
    let records: Vec<Value> = image
        .envelopes()
        .map(|e| json!({"kind": e.kind, "version": e.version, "id": e.id, "body": shown(&e.body)}))
        .collect();
    output::json(&json!({"header": image.header(), "records": records}))?;
    Ok(0)
}

/// CBOR as JSON: bytes that are text are shown as text, others by their length.
fn shown(value: &restore::image::Value) -> Value {
    use restore::image::Value as Cbor;
    match value {
        Cbor::Integer(i) => json!(i128::from(*i) as i64),
        Cbor::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => json!(text),
            _ => json!(format!("({} bytes)", bytes.len())),
        },
        Cbor::Float(f) => json!(f),
        Cbor::Text(text) => json!(text),
        Cbor::Bool(b) => json!(b),
        Cbor::Tag(_, inner) => shown(inner),
        Cbor::Array(all) => all.iter().map(shown).collect(),
        Cbor::Map(map) => {
            let key = |key: &Cbor| {
                key.as_text()
                    .map_or_else(|| shown(key).to_string(), str::to_owned)
            };
            Value::Object(map.iter().map(|(k, v)| (key(k), shown(v))).collect())
        }
        _ => Value::Null,
    }
}

fn verify(one: &OneImage) -> Result<u8> {
    let image = open(&one.image)?;
    image.verify().hinted(
        format!("verify the image {}", one.image.display()),
        "it is damaged: take it again, or copy it again from where it is whole",
    )?;
    output::print(&format!("{}: whole\n", one.image.display()))?;
    Ok(0)
}
