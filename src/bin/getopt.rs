//! Options of the tools' command lines as GNU `getopt_long` takes them: clustered short options, abbreviated long ones,
//! options and other arguments in any order, `--` to end them.

/// An option a command takes.
#[derive(Clone, Copy, Debug)]
pub struct Spec {
    /// The short letter, if it has one.
    pub short: Option<char>,
    /// The long name, if it has one.
    pub long: Option<&'static str>,
    /// Whether a value belongs to it.
    pub takes_value: bool,
}

/// A row of an option table: `opt('f', "format", true)`; a blank or an empty name means that there is none.
pub const fn opt(short: char, long: &'static str, takes_value: bool) -> Spec {
    Spec {
        short: if short == ' ' { None } else { Some(short) },
        long: if long.is_empty() { None } else { Some(long) },
        takes_value,
    }
}

/// What was on a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Options in their order: name (the long one if there is one, else the letter) and value.
    pub options: Vec<(String, Option<String>)>,
    /// Everything else, in order.
    pub rest: Vec<String>,
}

impl Parsed {
    /// Whether an option was given.
    pub fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(n, _)| n == name)
    }

    /// The last value of an option.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.options.iter().rev().find(|(n, _)| n == name).and_then(|(_, v)| v.as_deref())
    }

    /// All values of an option, in order.
    pub fn values(&self, name: &str) -> Vec<&str> {
        self.options.iter().filter(|(n, _)| n == name).filter_map(|(_, v)| v.as_deref()).collect()
    }
}

fn name_of(spec: &Spec) -> String {
    match (spec.long, spec.short) {
        (Some(long), _) => long.to_owned(),
        (None, Some(short)) => short.to_string(),
        (None, None) => String::new(),
    }
}

/// Takes a command line apart. With `permute` false the first argument that is no option ends the options.
///
/// # Errors
/// The text that `getopt_long` prints, without the program's name.
pub fn parse(args: &[String], specs: &[Spec], permute: bool) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            parsed.rest.extend(args.cloned());
            break;
        }
        if let Some(long) = arg.strip_prefix("--") {
            let (name, value) = match long.split_once('=') {
                Some((n, v)) => (n, Some(v.to_owned())),
                None => (long, None),
            };
            let spec = find_long(name, specs)?;
            let full = spec.long.unwrap_or(name);
            let value = match (spec.takes_value, value) {
                (true, None) => match args.next() {
                    Some(v) => Some(v.clone()),
                    None => return Err(format!("option '--{full}' requires an argument")),
                },
                (false, Some(_)) => return Err(format!("option '--{full}' doesn't allow an argument")),
                (_, value) => value,
            };
            parsed.options.push((name_of(spec), value));
        } else if arg.len() > 1 && arg.starts_with('-') {
            let mut letters = arg[1..].char_indices();
            for (at, letter) in letters.by_ref() {
                let Some(spec) = specs.iter().find(|s| s.short == Some(letter)) else {
                    return Err(format!("invalid option -- '{letter}'"));
                };
                if !spec.takes_value {
                    parsed.options.push((name_of(spec), None));
                    continue;
                }
                let inline = &arg[1 + at + letter.len_utf8()..];
                let value = if inline.is_empty() {
                    args.next().cloned().ok_or_else(|| format!("option requires an argument -- '{letter}'"))?
                } else {
                    inline.to_owned()
                };
                parsed.options.push((name_of(spec), Some(value)));
                break;
            }
        } else {
            parsed.rest.push(arg.clone());
            if !permute {
                parsed.rest.extend(args.cloned());
                break;
            }
        }
    }
    Ok(parsed)
}

fn find_long<'a>(name: &str, specs: &'a [Spec]) -> Result<&'a Spec, String> {
    if let Some(spec) = specs.iter().find(|s| s.long == Some(name)) {
        return Ok(spec);
    }
    let found: Vec<&Spec> = specs.iter().filter(|s| s.long.is_some_and(|l| l.starts_with(name))).collect();
    match found.as_slice() {
        [spec] => Ok(spec),
        [] => Err(format!("unrecognized option '--{name}'")),
        several => {
            let names: Vec<String> = several.iter().filter_map(|s| s.long).map(|l| format!("'--{l}'")).collect();
            Err(format!("option '--{name}' is ambiguous; possibilities: {}", names.join(" ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECS: &[Spec] =
        &[opt('f', "format", true), opt('q', "quiet", false), opt('U', "force-share", false), opt(' ', "output", true)];

    fn run(args: &[&str]) -> Result<Parsed, String> {
        parse(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>(), SPECS, true)
    }

    #[test]
    fn options_come_in_every_form() {
        let p = run(&["-qfqcow2", "x", "--output=json", "--form", "raw", "--", "-q"]).unwrap();
        assert_eq!(p.value("format"), Some("raw"));
        assert_eq!(p.values("format"), ["qcow2", "raw"]);
        assert!(p.has("quiet") && p.value("output") == Some("json"));
        assert_eq!(p.rest, ["x", "-q"]);
    }

    #[test]
    fn errors_read_as_those_of_getopt() {
        assert_eq!(run(&["-Z"]).unwrap_err(), "invalid option -- 'Z'");
        assert_eq!(run(&["-f"]).unwrap_err(), "option requires an argument -- 'f'");
        assert_eq!(run(&["--output"]).unwrap_err(), "option '--output' requires an argument");
        assert_eq!(run(&["--quiet=1"]).unwrap_err(), "option '--quiet' doesn't allow an argument");
        assert_eq!(run(&["--nosuch"]).unwrap_err(), "unrecognized option '--nosuch'");
        let e = run(&["--fo"]).unwrap_err();
        assert_eq!(e, "option '--fo' is ambiguous; possibilities: '--format' '--force-share'");
    }
}
