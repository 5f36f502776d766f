//! Lists of who may use which bridge: lines of `allow NAME`, `deny NAME`, `include FILE`; `all` is every name.

use std::fs::File;
use std::io::Read;

/// Files inside files.
const MAX_DEPTH: usize = 8;
/// The longest file that is read.
const MAX_SIZE: u64 = 1 << 20;

/// A line that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    allow: bool,
    /// The bridge; `None` is every one.
    bridge: Option<String>,
}

/// Reads a list with everything that it includes. A file that cannot be read is an error only if it is the first: an
/// included one that the user may not read does not concern the user.
///
/// # Errors
/// What to say about a malformed line, if that was the reason.
pub fn load(path: &str) -> Result<Vec<Rule>, Option<String>> {
    let mut rules = Vec::new();
    read(path, 0, &mut rules)?;
    Ok(rules)
}

fn read(path: &str, depth: usize, rules: &mut Vec<Rule>) -> Result<(), Option<String>> {
    let mut text = String::new();
    let file = File::open(path).map_err(|_| None)?;
    file.take(MAX_SIZE).read_to_string(&mut text).map_err(|_| None)?;
    for (command, argument) in lines(&text) {
        let argument = argument.map_err(Some)?;
        match command {
            "allow" | "deny" => {
                let bridge = (argument != "all").then(|| argument.to_owned());
                rules.push(Rule { allow: command == "allow", bridge });
            }
            "include" if depth < MAX_DEPTH => {
                if let Err(Some(note)) = read(argument, depth + 1, rules) {
                    eprintln!("{note}");
                }
            }
            "include" => return Err(Some(format!("Too many levels of includes at `{argument}'"))),
            _ => return Err(Some(format!("Unknown command `{command}'"))),
        }
    }
    Ok(())
}

/// Commands with their arguments, comments and empty lines left out.
fn lines(text: &str) -> impl Iterator<Item = (&str, Result<&str, String>)> {
    text.lines().filter_map(|line| {
        let trimmed = line.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            return None;
        }
        Some(match trimmed.split_once([' ', '\t']) {
            Some((command, argument)) => (command, Ok(argument.trim_start())),
            None => ("", Err(format!("Invalid config line:\n  {line}\n"))),
        })
    })
}

/// Whether the rules allow a bridge: something must, and nothing may deny it.
pub fn allows(rules: &[Rule], bridge: &str) -> bool {
    let concerns = |rule: &&Rule| rule.bridge.as_deref().is_none_or(|name| name == bridge);
    let mut matching = rules.iter().filter(concerns).peekable();
    matching.peek().is_some() && matching.all(|rule| rule.allow)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Rule> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, text).unwrap();
        load(file.path().to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_denial_wins_and_nothing_is_allowed_by_itself() {
        for (text, br0, br1) in [
            ("", false, false),
            ("allow br0", true, false),
            ("# all of them\n\n  allow \t all\n", true, true),
            ("allow all\ndeny br1", true, false),
            ("deny br0\nallow br0", false, false),
            ("deny all\nallow br0", false, false),
        ] {
            let rules = parse(text);
            assert_eq!((allows(&rules, "br0"), allows(&rules, "br1")), (br0, br1), "{text}");
        }
    }

    #[test]
    fn includes_are_followed_and_missing_ones_ignored() {
        let inner = tempfile::NamedTempFile::new().unwrap();
        let path = inner.path().display();
        std::fs::write(&inner, format!("allow br7\ninclude {path}")).unwrap();
        let rules = parse(&format!("include /nosuch\ninclude {path}\ndeny br1"));
        assert!(allows(&rules, "br7") && !allows(&rules, "br1"));
    }

    #[test]
    fn malformed_files_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acl");
        for (text, note) in [("allow", "Invalid config line:\n  allow\n"), ("permit br0", "Unknown command `permit'")] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(load(path.to_str().unwrap()), Err(Some(note.to_owned())));
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(load(path.to_str().unwrap()), Err(None));
    }
}
