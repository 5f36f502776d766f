//! A command line, one argument a line, and the small languages of its arguments.
#![no_main]
use libfuzzer_sys::fuzz_target;
use lockstep_qapi::{cli, keyval, opts};
use lockstep_system::cmdline::CommandLine;

fuzz_target!(|text: &str| {
    let words: Vec<String> = text.lines().map(str::to_string).collect();
    let _ = CommandLine::parse(&words);
    for word in text.lines() {
        let _ = opts::parse(word, Some("driver"));
        let _ = keyval::parse(word, Some("type"));
        let _ = keyval::parse_or_json(word, None);
        let _ = cli::object(word);
        let _ = cli::netdev(word);
        let _ = cli::blockdev(word);
        let _ = cli::display(word);
        let _ = cli::audiodev(word);
    }
});
