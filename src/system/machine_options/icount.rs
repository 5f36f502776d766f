//! `-icount`: time that follows the instructions.

use lockstep_accel::tcg::{IcountOptions, MAX_SHIFT};
use lockstep_qapi::opts;
use lockstep_util::{Result, bail};

use crate::cmdline::{CommandLine, parameters};

/// What the command line asks for; later options win.
///
/// # Errors
/// QEMU's.
pub(super) fn parse(line: &CommandLine) -> Result<Option<IcountOptions>> {
    let mut options = opts::Opts::default();
    let mut last = None;
    for o in line.all("icount") {
        let more = opts::parse(&o.value, Some("shift")).map_err(|e| o.locate(e))?;
        more.check(&parameters::descriptions("icount")).map_err(|e| o.locate(e))?;
        options.items.extend(more.items);
        options.help |= more.help;
        last = Some(o);
    }
    let Some(o) = last else { return Ok(None) };
    read(&options).map_err(|e| o.locate(e))
}

fn read(options: &opts::Opts) -> Result<Option<IcountOptions>> {
    if options.help {
        // To QEMU it is a shift like any other.
        bail!("icount: Invalid shift value");
    }
    let align = options.get_bool("align")?;
    let Some(shift) = options.get("shift") else {
        if align.is_some() {
            bail!("Please specify shift option when using align");
        }
        return Ok(None);
    };
    let (align, sleep) = (align.unwrap_or(false), options.get_bool("sleep")?.unwrap_or(true));
    if align && !sleep {
        bail!("align=on and sleep=off are incompatible");
    }
    let shift = match shift {
        "auto" => None,
        text => match number(text) {
            Some(n) if n <= MAX_SHIFT.into() => Some(n as u8),
            _ => bail!("icount: Invalid shift value"),
        },
    };
    Ok(Some(IcountOptions { shift, align, sleep }))
}

/// A number as C's `strtol` takes it with any base.
fn number(text: &str) -> Option<u64> {
    let text = text.trim_start();
    let text = text.strip_prefix('+').unwrap_or(text);
    let (digits, base) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, base).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> std::result::Result<Option<IcountOptions>, String> {
        let options = opts::parse(text, Some("shift")).unwrap();
        options.check(&parameters::descriptions("icount")).map_err(|e| e.message().to_owned())?;
        read(&options).map_err(|e| e.message().to_owned())
    }

    #[test]
    fn options_are_read_and_refused_as_by_qemu() {
        let all = |shift, align, sleep| Ok(Some(IcountOptions { shift, align, sleep }));
        let invalid = |text: &str| Err(format!("icount: Invalid shift value{text}"));
        for (text, wanted) in [
            ("3", all(Some(3), false, true)),
            ("shift=0x2,sleep=off", all(Some(2), false, false)),
            ("auto", all(None, false, true)),
            ("shift=auto,align=on", all(None, true, true)),
            ("shift=10,align=on,sleep=on", all(Some(10), true, true)),
            ("", Ok(None)),
            ("sleep=off", Ok(None)),
            ("help", invalid("")),
            ("shift=11", invalid("")),
            ("shift=-1", invalid("")),
            ("shift=1x", invalid("")),
            ("shift=", invalid("")),
            ("shift=99999999999999999999", invalid("")),
            ("align=on", Err("Please specify shift option when using align".into())),
            ("shift=1,align=on,sleep=off", Err("align=on and sleep=off are incompatible".into())),
            ("foo=1", Err("Invalid parameter 'foo'".into())),
            // There is no record and replay.
            ("shift=1,rr=record", Err("Invalid parameter 'rr'".into())),
            ("shift=1,sleep=maybe", Err("Parameter 'sleep' expects 'on' or 'off'".into())),
        ] {
            assert_eq!(asked(text), wanted, "{text}");
        }
    }
}
