//! The command line: which options there are, and what one occurrence of an option is.

pub mod help;
pub mod parameters;
mod table;

use lockstep_util::{Error, Result, err};

pub use table::{OPTIONS, OptionDef, help_text};

/// One option as the user wrote it.
#[derive(Clone, Debug)]
pub struct Occurrence {
    /// The option's name in the table, without dash.
    pub name: &'static str,
    /// Its argument; empty for options without one.
    pub value: String,
    /// How error messages name it: the words of the command line.
    pub location: String,
}

impl Occurrence {
    /// Says where an error comes from, as QEMU does.
    pub fn locate(&self, error: Error) -> Error {
        error.prepend(format_args!("{}: ", self.location))
    }
}

/// All options in the order in which they were written.
#[derive(Clone, Debug, Default)]
pub struct CommandLine {
    occurrences: Vec<Occurrence>,
}

impl CommandLine {
    /// Splits the words after the program's name into options.
    ///
    /// # Errors
    /// `-foo: invalid option`, `-m: requires an argument`.
    pub fn parse(words: &[String]) -> Result<Self> {
        let mut occurrences = vec![];
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix('-').filter(|_| word != "-") else {
                // A bare word is the image of the first disk.
                occurrences.push(Occurrence { name: "hda", value: word.clone(), location: word.clone() });
                continue;
            };
            let name = name.strip_prefix('-').unwrap_or(name);
            let option = OPTIONS
                .iter()
                .find(|o| o.name == name || o.alias == Some(name))
                .ok_or_else(|| err!("{word}: invalid option"))?;
            let (value, location) = if option.argument {
                let value = words.next().ok_or_else(|| err!("{word}: requires an argument"))?;
                (value.clone(), format!("{word} {value}"))
            } else {
                (String::new(), word.clone())
            };
            occurrences.push(Occurrence { name: option.name, value, location });
        }
        Ok(Self { occurrences })
    }

    /// All occurrences of an option.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Occurrence> {
        debug_assert!(OPTIONS.iter().any(|o| o.name == name), "{name} is not in the table");
        self.occurrences.iter().filter(move |o| o.name == name)
    }

    /// The last occurrence of an option: it overrides those before.
    pub fn last(&self, name: &str) -> Option<&Occurrence> {
        self.occurrences.iter().rev().find(|o| o.name == name)
    }

    /// Whether an option occurs.
    pub fn has(&self, name: &str) -> bool {
        self.last(name).is_some()
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Occurrence> {
        self.occurrences.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CommandLine> {
        CommandLine::parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn options_take_one_or_two_dashes_and_aliases() {
        let line = parse("--M pc -S disk.img -m 1G -m 2G").unwrap();
        assert_eq!(line.last("machine").unwrap().value, "pc");
        assert_eq!(line.last("hda").unwrap().value, "disk.img");
        assert_eq!(line.last("m").unwrap().location, "-m 2G");
        assert!(line.has("S") && !line.has("daemonize"));
    }

    #[test]
    fn wrong_options_get_qemus_words() {
        assert_eq!(parse("-foo").unwrap_err().message(), "-foo: invalid option");
        assert_eq!(parse("-m").unwrap_err().message(), "-m: requires an argument");
    }
}
