//! `qemu-img create`.

use super::open::{self, split_commas};
use super::{FAILURE, Outcome, args};
use lockstep_bin::getopt::{Parsed, Spec, opt};
use lockstep_block::image::{CreateOption, create_options};
use lockstep_block::open::{combine_path, find_driver, has_protocol};
use lockstep_block::{Graph, OpenFlags, Options};
use lockstep_util::{Error, Result, bail, err, size::parse_size};
use std::fmt::Write;

const OPTIONS: &[Spec] = &[
    opt('h', "help", false),
    opt('q', "quiet", false),
    opt('f', "format", true),
    opt('o', "options", true),
    opt('b', "backing", true),
    opt('F', "backing-format", true),
    opt('u', "backing-unsafe", false),
    opt(' ', "object", true),
];

/// Everything `create` was asked for.
pub struct Request {
    /// The file.
    pub filename: String,
    /// Its format.
    pub format: String,
    /// Options of the format as given: names and values, in order.
    pub options: Vec<(String, String)>,
    /// Length in bytes, if given apart from the options.
    pub size: Option<u64>,
    /// Backing file, if given apart from the options.
    pub backing: Option<String>,
    /// Its format.
    pub backing_format: Option<String>,
    /// Do not look at the backing file.
    pub backing_unsafe: bool,
    /// Print nothing.
    pub quiet: bool,
}

pub fn run(arguments: &[String]) -> Outcome {
    let Some(parsed) = args::parse("create", arguments, OPTIONS)? else { return Ok(()) };
    args::refuse(&parsed, &["object"])?;
    let format = parsed.value("format").unwrap_or("raw").to_owned();
    let mut options = Vec::new();
    for list in parsed.values("options") {
        if is_help(list) {
            return print_options(&format, !parsed.rest.is_empty());
        }
        options.extend(parse_list(list));
    }
    let request = match parsed.rest.as_slice() {
        [] => return args::usage(Some("create"), "Expecting image file name"),
        [_, _, extra, ..] => return args::usage(Some("create"), &format!("Unexpected argument: {extra}")),
        [filename, size @ ..] => Request {
            filename: filename.clone(),
            format,
            options,
            size: size.first().map(|s| parse_image_size(s)).transpose()?,
            backing: parsed.value("backing").map(str::to_owned),
            backing_format: parsed.value("backing-format").map(str::to_owned),
            backing_unsafe: parsed.has("backing-unsafe"),
            quiet: parsed.has("quiet"),
        },
    };
    open::run(|graph| async move {
        match create(&graph, &request).await {
            Ok(()) => Ok(()),
            Err(e) => args::fail(&e.prepend(format!("{}: ", request.filename))),
        }
    })
}

/// A size argument.
pub fn parse_image_size(text: &str) -> std::result::Result<u64, u8> {
    match parse_size(text, 'B') {
        Some(size) if size <= i64::MAX as u64 => Ok(size),
        None if !text.starts_with(|c: char| c.is_ascii_digit()) || !is_number(text) => {
            args::report(&format!("Invalid image size specified: '{text}'."));
            Err(FAILURE)
        }
        _ => {
            args::report("Invalid image size specified. Must be between 0 and 9223372036854775807.");
            Err(FAILURE)
        }
    }
}

fn is_number(text: &str) -> bool {
    let digits = text.trim_end_matches(|c: char| "bkmgtpeBKMGTPE".contains(c));
    text.len() - digits.len() <= 1 && digits.chars().all(|c| c.is_ascii_digit() || c == '.')
}

/// `help` or `?` in an option list.
pub fn is_help(list: &str) -> bool {
    split_commas(list).iter().any(|p| p == "help" || p == "?")
}

/// `a=b,c=d` as names and values.
pub fn parse_list(list: &str) -> Vec<(String, String)> {
    split_commas(list)
        .into_iter()
        .map(|part| match part.split_once('=') {
            Some((k, v)) => (k.to_owned(), v.to_owned()),
            None => match part.strip_prefix("no") {
                Some(name) if !name.is_empty() => (name.to_owned(), "off".to_owned()),
                _ => (part, "on".to_owned()),
            },
        })
        .collect()
}

/// Prints the options that a format takes.
pub fn print_options(format: &str, with_file: bool) -> Outcome {
    let Some(options) = known_options(format) else {
        args::report(&format!("Unknown file format '{format}'"));
        return Err(FAILURE);
    };
    let mut text = if with_file { "Supported options:\n".to_owned() } else { format!("Supported {format} options:\n") };
    for option in options {
        let left = format!("{}={}", option.name, option.kind);
        let _ = writeln!(text, "  {left:<22} - {}", option.help);
    }
    if !with_file {
        text.push_str(
            "\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n",
        );
    }
    args::print(&text)
}

fn known_options(format: &str) -> Option<&'static [CreateOption]> {
    find_driver(format).ok()?;
    create_options(format)
}

/// The order in which the chosen options are shown.
const SHOWN: &[&str] = &[
    "cluster_size",
    "extended_l2",
    "preallocation",
    "compression_type",
    "size",
    "compat",
    "backing_file",
    "backing_fmt",
    "lazy_refcounts",
    "refcount_bits",
];

/// Makes an image as asked, saying so unless quiet. Errors are without the file's name.
pub async fn create(graph: &Graph, request: &Request) -> Result<()> {
    let Ok(_) = find_driver(&request.format) else { bail!("Unknown file format '{}'", request.format) };
    let Some(known) = create_options(&request.format) else {
        bail!("Format driver '{}' does not support image creation", request.format);
    };
    let mut options = Options::new();
    if request.format == "qcow2" {
        for (name, value) in [
            ("cluster_size", "65536"),
            ("extended_l2", "off"),
            ("compression_type", "zlib"),
            ("lazy_refcounts", "off"),
            ("refcount_bits", "16"),
        ] {
            options.set(name, value);
        }
    }
    let mut given_size = None;
    check_names(&request.format, &request.options)?;
    for (name, value) in &request.options {
        if name == "size" {
            given_size = Some(lockstep_block::options::parse_size_option("size", value)?);
        }
        options.set(name.clone(), value.clone());
    }
    if given_size.is_some() && request.size.is_some() {
        bail!("The image size must be specified only once");
    }
    let size = given_size.or(request.size);
    take_once(&mut options, "backing_file", request.backing.as_deref(), &request.format, known)?;
    take_once(&mut options, "backing_fmt", request.backing_format.as_deref(), &request.format, known)?;
    let backing = options.get_str("backing_file").map(str::to_owned);
    if backing.as_deref() == Some("") {
        bail!("Expected backing file name, got empty string");
    }
    if backing.as_deref() == Some(request.filename.as_str()) {
        bail!("Error: Trying to create an image with the same filename as the backing file");
    }
    let backing_format = options.get_str("backing_fmt").map(str::to_owned);
    let size = match (&backing, request.backing_unsafe) {
        (Some(name), unsafe_mode) if !(unsafe_mode && size.is_some()) => {
            Some(look_at_backing(graph, request, name, backing_format.as_deref(), size).await?)
        }
        _ => size,
    };
    let Some(size) = size else { bail!("Image creation needs a size parameter") };
    options.set("size", size);
    if !request.quiet {
        let order = if request.format == "qcow2" { SHOWN } else { &["size", "preallocation"] };
        let shown = order.iter().filter_map(|name| options.get(name).map(|v| (name, v)));
        let mut line = format!("Formatting '{}', fmt={}", request.filename, request.format);
        for (name, value) in shown {
            let value = match value {
                serde_json::Value::String(s) => quote(name, s),
                other => other.to_string(),
            };
            let _ = write!(line, " {name}={value}");
        }
        println!("{line}");
    }
    lockstep_block::image::create(graph, &request.filename, &request.format, options).await
}

/// Refuses options that the format does not know.
pub fn check_names(format: &str, options: &[(String, String)]) -> Result<()> {
    let known = create_options(format).unwrap_or_default();
    let is_known = |name: &str| known.iter().any(|o| o.name == name) || matches!(name, "backing_file" | "backing_fmt");
    match options.iter().find(|(name, _)| !is_known(name)) {
        Some((name, _)) => bail!("Invalid parameter '{name}'"),
        None => Ok(()),
    }
}

/// Option values are shown as they would have to be given.
fn quote(name: &str, value: &str) -> String {
    // Sizes are shown as numbers of bytes.
    match parse_size(value, 'B') {
        Some(bytes) if matches!(name, "cluster_size" | "size") => bytes.to_string(),
        _ => value.replace(',', ",,"),
    }
}

fn take_once(
    options: &mut Options,
    name: &str,
    value: Option<&str>,
    format: &str,
    known: &[CreateOption],
) -> Result<()> {
    let Some(value) = value.map(str::to_owned).or_else(|| options.get_str(name).map(str::to_owned)) else {
        return Ok(());
    };
    if !known.iter().any(|o| o.name == name) {
        let what = if name == "backing_file" { "Backing file" } else { "Backing format" };
        bail!("{what} not supported for file format '{format}'");
    }
    options.set(name, value);
    Ok(())
}

/// Opens the backing file: it must be there, have a format, and tells the length unless one is given.
async fn look_at_backing(
    graph: &Graph,
    request: &Request,
    name: &str,
    format: Option<&str>,
    size: Option<u64>,
) -> Result<u64> {
    if request.backing_unsafe {
        bail!("Image creation needs a size parameter");
    }
    let full = if has_protocol(name) { name.to_owned() } else { combine_path(&request.filename, name) };
    let mut options = Options::new();
    if let Some(format) = format {
        options.set("driver", format);
    }
    let flags = OpenFlags { read_only: true, ..OpenFlags::default() };
    let node = match graph.open(Some(&full), options, flags).await {
        Ok(node) => node,
        Err(e) => return Err(e.hint("Could not open backing image.\n")),
    };
    if format.is_none() {
        return Err(err!("Backing file specified without backing format")
            .hint(format!("Detected format of {}.\n", node.def().name)));
    }
    match size {
        Some(size) => Ok(size),
        None => node.len().map_err(|e| Error::with_errno(format!("Could not get size of '{full}'"), &e)),
    }
}

/// The `-o` values of other commands.
pub fn options_of(parsed: &Parsed, name: &str) -> Vec<(String, String)> {
    parsed.values(name).into_iter().flat_map(parse_list).collect()
}
